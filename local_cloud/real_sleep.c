/* Preloaded before libfaketime: when told to leave the monotonic clock alone, its clock_nanosleep fails for an absolute
   time of that clock, which Python's time.sleep passes. */
#include <errno.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *request, struct timespec *left) {
  return syscall(SYS_clock_nanosleep, clock, flags, request, left) ? errno : 0;
}

/* Preloaded before libfaketime, whose own clock_nanosleep refuses to sleep until a moment of the monotonic clock when it
   has been told to leave that clock alone. Python's time.sleep does just that. */
#include <errno.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *request, struct timespec *left) {
  return syscall(SYS_clock_nanosleep, clock, flags, request, left) ? errno : 0;
}

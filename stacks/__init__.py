"""The two stacks: DataStack stays, TrainingStack comes and goes. No construct reference between them."""

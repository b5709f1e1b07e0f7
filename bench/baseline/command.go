package baseline

import (
	"context"
	"fmt"
	"io"
)

// Commands are the names that Command knows.
var Commands = []string{nullLoopCommand, wireGuardCommand}

// Command is the main function of the processes behind the baselines, which only their Topologies start. They may leave
// threads in system calls: end the process afterwards.
func Command(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) != 1 {
		return fmt.Errorf("expected one of the commands %q", Commands)
	}
	switch args[0] {
	case nullLoopCommand:
		return nullLoop(ctx, stdin, stdout)
	case wireGuardCommand:
		return wireGuard(ctx, stdin, stdout)
	}
	return fmt.Errorf("unknown command %q", args[0])
}

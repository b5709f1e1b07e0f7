package baseline

import (
	"context"
	"fmt"
	"io"
)

// Commands are the names that Command knows.
var Commands = []string{nullLoopCommand, wireGuardCommand}

// Command is the main function of the processes behind the baselines. Only the baselines' Topologies start these
// processes. Command may leave threads blocked in system calls: the process should end when it returns.
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

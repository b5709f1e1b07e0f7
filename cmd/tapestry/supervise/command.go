// Package supervise keeps the agent running. "tapestry supervise" starts another command of the same program and starts
// it again whenever it ends, so that the death of an agent does not end its container: Kubernetes starts a container
// that ends twice within seconds again only after 10 s and more.
//
// The supervisor waits between two runs only when runs end too soon to be of use (pause). It passes signals on, reaps
// whatever processes are left behind, and ends with the status of the last run when it is told to end. When the
// supervisor is killed, the kernel kills what it started, so that there are never two agents.
//
// A supervised process is told how often it was started again and why (Supervised), and tells its supervisor when it
// serves (Serving).
package supervise

import (
	"log/slog"
	"os"
	"runtime/debug"
	"strings"

	"github.com/urfave/cli/v2"
)

// Command is "tapestry supervise".
func Command() *cli.Command {
	return &cli.Command{
		Name:      "supervise",
		Usage:     "run another command, such as agent, and start it again whenever it ends",
		ArgsUsage: "COMMAND [ARGUMENT...]",
		Description: "Starts 'tapestry COMMAND ARGUMENT...' again at once whenever it ends, so that the container in which both run does\n" +
			"not end. When it ends before it serves, or again and again within seconds, there are pauses of up to 5 s. Signals are passed\n" +
			"on; after SIGTERM, SIGINT or SIGHUP the supervisor ends with the command, and with its status.",
		SkipFlagParsing: true, // all flags are the command's
		Action: func(c *cli.Context) error {
			args := c.Args().Slice()
			if len(args) > 0 && (args[0] == "--help" || args[0] == "-h") {
				return cli.ShowSubcommandHelp(c)
			}
			if len(args) == 0 || strings.HasPrefix(args[0], "-") || args[0] == c.Command.Name {
				return cli.Exit("supervise takes the command that it runs, such as 'tapestry supervise agent --node=n1': see 'tapestry supervise --help'", 2)
			}
			exe, err := os.Executable()
			if err != nil {
				return err
			}
			// The packages of this program allocate more at start than a supervisor needs.
			debug.SetGCPercent(20)
			debug.FreeOSMemory()
			s := &supervisor{path: exe, argv: append([]string{os.Args[0]}, args...), log: slog.Default().With("command", args[0])}
			switch status, err := s.run(c.Context); {
			case err != nil:
				return err
			case status != 0:
				return cli.Exit("", status)
			}
			return nil
		},
	}
}

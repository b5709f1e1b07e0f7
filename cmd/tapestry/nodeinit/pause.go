package nodeinit

import "github.com/urfave/cli/v2"

// Pause is "tapestry pause", the main program of a DaemonSet whose work is done by init containers.
func Pause() *cli.Command {
	return &cli.Command{
		Name:   "pause",
		Usage:  "do nothing until told to end",
		Hidden: true,
		Action: func(ctx *cli.Context) error {
			<-ctx.Context.Done()
			return nil
		},
	}
}

package connectivity

import (
	"errors"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/cmd/tapestry/connectivity/talk"
)

// name is the name of the command.
const name = "connectivity-test"

// inPod returns the arguments with which this program runs a subcommand in a pod.
func inPod(args ...string) []string { return append([]string{name}, args...) }

// inside returns the commands that the test runs in its pods. Each result is one line of JSON.
func inside() []*cli.Command {
	return []*cli.Command{
		{
			Name: "serve", Hidden: true, Usage: "answer with the names of both ends",
			Flags: []cli.Flag{&cli.StringFlag{Name: "name", Required: true}, &cli.IntSliceFlag{Name: "tcp"}, &cli.IntSliceFlag{Name: "udp"}},
			Action: func(c *cli.Context) error {
				s, err := talk.Listen(c.Context, talk.Config{Name: c.String("name"), TCP: c.IntSlice("tcp"), UDP: c.IntSlice("udp")})
				if err != nil {
					return err
				}
				return s.Serve(c.Context)
			},
		},
		{
			Name: "ask", Hidden: true, Usage: "ask a server", ArgsUsage: "tcp|udp ADDRESS",
			Flags: []cli.Flag{&cli.IntFlag{Name: "times", Value: 1}},
			Action: func(c *cli.Context) error {
				for range c.Int("times") {
					if err := say(c, talk.Ask(c.Context, talk.Request{Network: c.Args().Get(0), Addr: c.Args().Get(1), Body: "hello"})); err != nil {
						return err
					}
				}
				return nil
			},
		},
		{
			Name: "resolve", Hidden: true, Usage: "look a name up", ArgsUsage: "host|srv|ptr NAME",
			Action: func(c *cli.Context) error {
				got, err := talk.Resolve(c.Context, c.Args().Get(0), c.Args().Get(1))
				if err != nil {
					return say(c, map[string]string{"error": err.Error()})
				}
				return say(c, map[string][]string{"answers": got})
			},
		},
		{
			Name: "get", Hidden: true, Usage: "make an HTTP request", ArgsUsage: "URL",
			Action: func(c *cli.Context) error {
				if c.Args().First() == "" {
					return errors.New("expected a URL")
				}
				return say(c, talk.Fetch(c.Context, c.Args().First()))
			},
		},
	}
}

func say(c *cli.Context, v any) error {
	_, err := c.App.Writer.Write(talk.Encode(v))
	return err
}

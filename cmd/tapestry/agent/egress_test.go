package agent

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/netstack"
)

func TestDenyEgress(t *testing.T) {
	own, err := netstack.ParseDestination("192.0.2.0/24:80")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		flags []string
		want  []netstack.Destination
		err   string
	}{
		"by default":            {nil, netstack.MetadataServers, ""},
		"nothing":               {[]string{"--deny-egress="}, nil, ""},
		"something else":        {[]string{"--deny-egress=192.0.2.0/24:80"}, []netstack.Destination{own}, ""},
		"something besides":     {[]string{"--deny-egress=metadata", "--deny-egress=192.0.2.0/24:80"}, append(slices.Clone(netstack.MetadataServers), own), ""},
		"several in one":        {[]string{"--deny-egress=192.0.2.0/24:80,metadata"}, append([]netstack.Destination{own}, netstack.MetadataServers...), ""},
		"what is no range":      {[]string{"--deny-egress=cloud"}, nil, `--deny-egress: destination "cloud": expected RANGE or RANGE:PORT`},
		"a range with its host": {[]string{"--deny-egress=192.0.2.7/24"}, nil, "192.0.2.0/24 is meant"},
	} {
		t.Run(name, func(t *testing.T) {
			command := Command()
			var got []netstack.Destination
			var failed error
			command.Action = func(ctx *cli.Context) error {
				got, failed = destinations(ctx.StringSlice("deny-egress"))
				return nil
			}
			app := &cli.App{Commands: []*cli.Command{command}}
			args := append([]string{"tapestry", "agent", "--node=n", "--state=s", "--keeper=k", "--attach-socket=a"}, c.flags...)
			if err := app.RunContext(context.Background(), args); err != nil {
				t.Fatal(err)
			}
			if c.err != "" {
				if failed == nil || !strings.Contains(failed.Error(), c.err) {
					t.Errorf("error %v, want one with %q", failed, c.err)
				}
				return
			}
			if failed != nil || !slices.Equal(got, c.want) {
				t.Errorf("%v, %v; want %v", got, failed, c.want)
			}
		})
	}
}

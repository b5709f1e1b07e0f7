package agent

import (
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/cmd/tapestry/agent/announcing"
)

// What --announce and the flags beside it may say.
func TestAnnounceFlags(t *testing.T) {
	for _, tt := range []struct {
		args string
		want string // of the error; "" for none
	}{
		{"", ""},
		{"--announce l2 --announce bgp --announce-socket /s --announce-uid 60821", ""},
		{"--announce ospf --announce-socket /s", `--announce "ospf" is no way to announce addresses: expected l2 or bgp`},
		{"--announce l2", "--announce and --announce-socket belong together"},
		{"--announce-socket /s", "--announce and --announce-socket belong together"},
		{"--announce l2 --announce-socket /s --announce-uid -1", "--announce-uid -1 is not the number of a user"},
	} {
		var c announceConfig
		app := &cli.App{Flags: c.flags(), Action: func(*cli.Context) error { return c.parse() }}
		err := app.Run(append([]string{"agent"}, strings.Fields(tt.args)...))
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", tt.args, err, tt.want)
		}
		if strings.Contains(tt.args, "bgp") && err == nil && (len(c.kinds) != 2 || c.kinds[1] != announcing.BGP || !slices.Contains(c.users()[announcing.BGP], 60821) || slices.Contains(c.users()[announcing.L2], 60821)) {
			t.Errorf("%s: %+v, users %v", tt.args, c, c.users())
		}
	}
}

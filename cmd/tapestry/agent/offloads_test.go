package agent

import (
	"slices"
	"testing"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/netstack/tap"
)

func TestOffloadFlags(t *testing.T) {
	partial := []string{kube.PartialChecksums}
	for _, tc := range []struct {
		args     []string
		disabled tap.Offloads
		gso, gro bool
		features []string
	}{
		{nil, 0, true, true, partial},
		{[]string{"--tap-csum", "--tap-uso=true"}, 0, true, true, partial},
		{[]string{"--tap-csum=false"}, tap.AllOffloads, true, true, partial},
		{[]string{"--tap-tso4=false"}, tap.TSO4, true, true, partial},
		{[]string{"--tap-tso6=false"}, tap.TSO6, true, true, partial},
		{[]string{"--tap-uso=false"}, tap.USO, true, true, partial},
		{[]string{"--tap-tso4=false", "--tap-tso6=false"}, tap.TSO4 | tap.TSO6, true, true, partial},
		{[]string{"--udp-gso=false"}, 0, false, true, partial},
		{[]string{"--udp-gro=false"}, 0, true, false, partial},
		{[]string{"--tunnel-csum=false"}, 0, true, true, nil},
	} {
		var o offloads
		app := &cli.App{Flags: o.flags(), Action: func(*cli.Context) error { return nil }}
		if err := app.RunContext(t.Context(), append([]string{"agent"}, tc.args...)); err != nil {
			t.Fatal(err)
		}
		if o.disabled() != tc.disabled || o.udpGSO != tc.gso || o.udpGRO != tc.gro || !slices.Equal(o.features(), tc.features) {
			t.Errorf("%v: TAPs without %s, GSO %v, GRO %v, features %v; want without %s, %v, %v, %v",
				tc.args, o.disabled(), o.udpGSO, o.udpGRO, o.features(), tc.disabled, tc.gso, tc.gro, tc.features)
		}
	}
}

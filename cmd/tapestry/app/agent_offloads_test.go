package app

import (
	"testing"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/netstack/tap"
)

func TestOffloadFlags(t *testing.T) {
	for _, tc := range []struct {
		args     []string
		disabled tap.Offloads
		gso, gro bool
	}{
		{nil, 0, true, true},
		{[]string{"--tap-csum", "--tap-uso=true"}, 0, true, true},
		{[]string{"--tap-csum=false"}, tap.AllOffloads, true, true},
		{[]string{"--tap-tso4=false"}, tap.TSO4, true, true},
		{[]string{"--tap-tso6=false"}, tap.TSO6, true, true},
		{[]string{"--tap-uso=false"}, tap.USO, true, true},
		{[]string{"--tap-tso4=false", "--tap-tso6=false"}, tap.TSO4 | tap.TSO6, true, true},
		{[]string{"--udp-gso=false"}, 0, false, true},
		{[]string{"--udp-gro=false"}, 0, true, false},
	} {
		var o offloads
		app := &cli.App{Flags: o.flags(), Action: func(*cli.Context) error { return nil }}
		if err := app.RunContext(t.Context(), append([]string{"agent"}, tc.args...)); err != nil {
			t.Fatal(err)
		}
		if o.disabled() != tc.disabled || o.udpGSO != tc.gso || o.udpGRO != tc.gro {
			t.Errorf("%v: TAPs without %s, GSO %v, GRO %v; want without %s, %v, %v",
				tc.args, o.disabled(), o.udpGSO, o.udpGRO, tc.disabled, tc.gso, tc.gro)
		}
	}
}

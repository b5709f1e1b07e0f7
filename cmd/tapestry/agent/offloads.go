package agent

import (
	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/netstack/tap"
)

// offloads switches off work that the kernel does for the agent, for kernels and devices that do it wrongly. The agent
// finds out by itself what the kernel does not support.
type offloads struct {
	tapCsum, tapTSO4, tapTSO6, tapUSO bool
	udpGSO, udpGRO                    bool
	tunnelCsum                        bool
}

func (o *offloads) flags() []cli.Flag {
	const category = "Offloads"
	return []cli.Flag{
		&cli.BoolFlag{Name: "tap-csum", Category: category, Usage: "leave checksums to the TAPs; the other --tap-* flags need this one", Value: true, Destination: &o.tapCsum},
		&cli.BoolFlag{Name: "tap-tso4", Category: category, Usage: "TCP superframes over IPv4 through the TAPs", Value: true, Destination: &o.tapTSO4},
		&cli.BoolFlag{Name: "tap-tso6", Category: category, Usage: "TCP superframes over IPv6 through the TAPs", Value: true, Destination: &o.tapTSO6},
		&cli.BoolFlag{Name: "tap-uso", Category: category, Usage: "UDP superframes through the TAPs", Value: true, Destination: &o.tapUSO},
		&cli.BoolFlag{Name: "udp-gso", Category: category, Usage: "have the kernel cut what the tunnel sends into datagrams", Value: true, Destination: &o.udpGSO},
		&cli.BoolFlag{Name: "udp-gro", Category: category, Usage: "have the kernel coalesce the datagrams of the tunnel", Value: true, Destination: &o.udpGRO},
		&cli.BoolFlag{Name: "tunnel-csum", Category: category, Usage: "let other nodes send without checksums what the tunnel authenticates anyway", Value: true, Destination: &o.tunnelCsum},
	}
}

// features returns what other nodes are told that they may rely on.
func (o *offloads) features() []string {
	if o.tunnelCsum {
		return []string{kube.PartialChecksums}
	}
	return nil
}

// disabled returns the offloads of TAPs that are switched off.
func (o *offloads) disabled() tap.Offloads {
	var off tap.Offloads
	for _, x := range []struct {
		on   bool
		bits tap.Offloads
	}{
		{o.tapCsum, tap.AllOffloads}, {o.tapTSO4, tap.TSO4}, {o.tapTSO6, tap.TSO6}, {o.tapUSO, tap.USO},
	} {
		if !x.on {
			off |= x.bits
		}
	}
	return off
}

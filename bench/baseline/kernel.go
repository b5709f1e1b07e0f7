package baseline

import (
	"net/netip"

	"tapestry.dev/tapestry/bench"
	"tapestry.dev/tapestry/netstack/tap"
)

// KernelBridge returns a Topology of the kernel alone: two veth pairs and a bridge.
func KernelBridge() (bench.Topology, error) {
	return build("kernel-bridge", func(p *pair) error { return p.bridge(bench.DefaultMTU, clientAddr, serverAddr) })
}

// Veth returns the shortest way between two namespaces: one veth pair.
func Veth() (bench.Topology, error) { return build("veth", (*pair).wire) }

const (
	vxlanID   = 1
	vxlanPort = 4789 // IANA's
)

// VXLAN returns what joins nodes where the kernel may do it and nothing is encrypted: a kernel VXLAN device on each
// side, over KernelBridge's topology with an MTU of 1500. The tunnel's MTU is bench.DefaultMTU, 30 bytes less than
// fits, so that packets are as large as in the other topologies.
func VXLAN() (bench.Topology, error) {
	return build("vxlan", func(p *pair) error {
		if err := p.bridge(1500, clientUnderlay, serverUnderlay); err != nil {
			return err
		}
		for _, end := range []struct {
			ns            *tap.Namespace
			addr          netip.Prefix
			local, remote netip.Prefix
		}{{p.client, clientAddr, clientUnderlay, serverUnderlay}, {p.server, serverAddr, serverUnderlay, clientUnderlay}} {
			err := tap.NewVXLAN(end.ns, tap.VXLAN{
				Name: "vxlan0", ID: vxlanID, Local: end.local.Addr(), Remote: end.remote.Addr(), Port: vxlanPort, MTU: bench.DefaultMTU,
			})
			if err != nil {
				return err
			}
			if err := tap.AddAddr(end.ns, "vxlan0", end.addr); err != nil {
				return err
			}
		}
		return nil
	})
}

package baseline

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"

	"tapestry.dev/tapestry/bench"
	"tapestry.dev/tapestry/bench/process"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/overlay"
	"tapestry.dev/tapestry/overlay/stock"
)

const wireGuardCommand = "wireguard"

// tunPeer is what each of the two processes is told about the other. Private keys are made where they are used and
// never leave their process.
type tunPeer struct {
	PublicKey  overlay.PublicKey
	Listen     uint16
	Endpoint   netip.AddrPort
	AllowedIPs []netip.Prefix
	MTU        int
}

const wireGuardPort = 51820

// WireGuard returns stock wireguard-go: a process on each side with a device on a TUN, over KernelBridge's topology
// with an MTU of 1500. Comparing with WireGuard shows what Tapestry adds across nodes.
func WireGuard(spawn process.Spawn) (bench.Topology, error) {
	return build("wireguard-go", func(p *pair) error {
		if err := p.bridge(1500, clientUnderlay, serverUnderlay); err != nil {
			return err
		}
		ends := []*tunEnd{
			{ns: p.client, addr: clientAddr, underlay: clientUnderlay.Addr()},
			{ns: p.server, addr: serverAddr, underlay: serverUnderlay.Addr()},
		}
		for _, e := range ends {
			if err := e.start(p, spawn); err != nil {
				return err
			}
		}
		for i, e := range ends {
			if err := e.join(ends[1-i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// tunEnd is one side.
type tunEnd struct {
	ns       *tap.Namespace
	addr     netip.Prefix // inside the tunnel
	underlay netip.Addr
	proc     *process.Process
	key      overlay.PublicKey
}

// start starts the process, which prints its public key.
func (e *tunEnd) start(p *pair, spawn process.Spawn) error {
	proc, line, err := process.Start(e.ns, spawn(wireGuardCommand))
	if err != nil {
		return err
	}
	p.closers = append(p.closers, proc)
	e.proc = proc
	e.key, err = overlay.ParsePublicKey(line)
	return err
}

// join tells the process about the other side and configures the interface that the process makes.
func (e *tunEnd) join(other *tunEnd) error {
	config, err := json.Marshal(tunPeer{
		PublicKey:  other.key,
		Listen:     wireGuardPort,
		Endpoint:   netip.AddrPortFrom(other.underlay, wireGuardPort),
		AllowedIPs: []netip.Prefix{netip.PrefixFrom(other.addr.Addr(), other.addr.Addr().BitLen())},
		MTU:        bench.DefaultMTU,
	})
	if err != nil {
		return err
	}
	name, err := e.proc.Tell(append(config, '\n'))
	if err != nil {
		return err
	}
	if err := tap.AddAddr(e.ns, name, e.addr); err != nil {
		return err
	}
	return tap.SetUp(e.ns, name)
}

// wireGuard is the main function of that process. It prints its public key, reads its peer's configuration, prints the
// name of its interface, and runs until its standard input ends.
func wireGuard(ctx context.Context, stdin io.Reader, stdout io.Writer) error {
	key := overlay.NewPrivateKey()
	fmt.Fprintln(stdout, key.Public())
	var peer tunPeer
	config := json.NewDecoder(stdin)
	if err := config.Decode(&peer); err != nil {
		return fmt.Errorf("%s: read configuration: %w", wireGuardCommand, err)
	}
	ctx, cancel := process.UntilEOF(ctx, stdin)
	defer cancel()
	return stock.Run(ctx, stock.Config{
		Name: "wg0", PrivateKey: key, ListenPort: peer.Listen, MTU: peer.MTU,
		Peers: []stock.Peer{{PublicKey: peer.PublicKey, Endpoint: peer.Endpoint, AllowedIPs: peer.AllowedIPs}},
		Ready: func(d stock.Device) { fmt.Fprintln(stdout, d.Name) },
	})
}

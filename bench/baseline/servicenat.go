package baseline

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	"tapestry.dev/tapestry/bench"
	"tapestry.dev/tapestry/bench/process"
	"tapestry.dev/tapestry/netstack/tap"
)

// maxServices is how many Services fit into the address ranges used here.
const maxServices = 1 << 16

// serviceFrontend is the ClusterIP of the measured Service.
var serviceFrontend = netip.AddrPortFrom(netip.MustParseAddr("10.97.255.254"), bench.LoadPort)

// loadTimeout limits how long the kernel may take to load the rules.
const loadTimeout = 5 * time.Minute

// ServiceNAT returns a node with the rules that kube-proxy makes for services Services (1 to 65536). The node routes
// between the client's and the server's veth pairs and translates a ClusterIP, which is the Target. The measured
// Service stands in the middle of the rules. Like every Service it has two endpoints, but both lead to the same server.
// See loadedServices for the other Services.
func ServiceNAT(mode Mode, services int) (bench.Topology, error) {
	if services < 1 || services > maxServices {
		return nil, fmt.Errorf("baseline: %d Services, expected 1 to %d", services, maxServices)
	}
	load, err := mode.loader()
	if err != nil {
		return nil, err
	}
	return build(fmt.Sprintf("kube-proxy-%s-%d", mode, services), func(p *pair) error {
		node, server, err := p.node()
		if err != nil {
			return err
		}
		p.targets = map[bench.Service]netip.AddrPort{bench.Load: serviceFrontend}
		return load(node, loadedServices(services, serviceFrontend, []netip.AddrPort{server, server}))
	})
}

// loader returns the function that loads the mode's rules into a namespace. It finds the program for that.
func (m Mode) loader() (func(*tap.Namespace, []servicePort) error, error) {
	var name, debian string
	var args []string
	var rules func([]servicePort) []string
	switch m {
	case IPTables:
		name, debian, args, rules = "iptables-restore", "iptables", []string{"--noflush"}, iptablesRules
	case NFTables:
		name, debian, args, rules = "nft", "nftables", []string{"-f", "-"}, nftablesRules
	default:
		return nil, fmt.Errorf("baseline: mode %q, expected %s or %s", m, IPTables, NFTables)
	}
	path, err := process.Find(name, "apt-get install "+debian)
	if err != nil {
		return nil, err
	}
	return func(ns *tap.Namespace, services []servicePort) error {
		ctx, cancel := context.WithTimeout(context.Background(), loadTimeout)
		defer cancel()
		for _, input := range rules(services) {
			cmd := exec.Command(path, args...)
			cmd.Stdin = strings.NewReader(input)
			if _, err := process.Output(ctx, ns, cmd); err != nil {
				return fmt.Errorf("load the rules of %d Services with %s: %w", len(services), name, err)
			}
		}
		return nil
	}, nil
}

// node makes a namespace that routes between client and server, and returns the server's address and port.
func (p *pair) node() (*tap.Namespace, netip.AddrPort, error) {
	node, err := p.middle()
	if err == nil {
		err = errors.Join(
			defaultRoute(p.client, middleAddr),
			defaultRoute(p.server, middleBehindAddr),
			tap.SetSysctl(node, "net.ipv4.ip_forward", "1"))
	}
	return node, netip.AddrPortFrom(behindAddr.Addr(), bench.LoadPort), err
}

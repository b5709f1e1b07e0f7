package baseline

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"tapestry.dev/tapestry/bench"
	"tapestry.dev/tapestry/bench/process"
	"tapestry.dev/tapestry/netstack/tap"
)

const (
	dnsPort     = 53
	clusterZone = "cluster.local"
	// resolveTimeout is how long an answer is waited for before the question is asked again.
	resolveTimeout = 250 * time.Millisecond
)

// CoreDNS is CoreDNS on a veth pair, with as many names (1 to 65536) as a cluster has Services, one of them
// bench.DNSName. "make peers" builds it. Its configuration is that of Kubernetes without what observes it (metrics,
// health) and with another source: the kubernetes plugin needs an API server, so the zone is a file, with the same
// names and time to live. With the cache in front, a name that is asked for again and again comes from there with
// either.
func CoreDNS(names int) (bench.Topology, error) {
	if names < 1 || names > maxServices {
		return nil, fmt.Errorf("baseline: %d names, expected 1 to %d", names, maxServices)
	}
	path, err := process.Find("coredns", makePeers)
	if err != nil {
		return nil, err
	}
	return build("coredns", func(p *pair) error {
		if err := p.wire(); err != nil {
			return err
		}
		dir, err := p.tempDir()
		if err != nil {
			return err
		}
		zone, config := filepath.Join(dir, "zone"), filepath.Join(dir, "Corefile")
		err = errors.Join(
			os.WriteFile(zone, []byte(zoneFile(names)), 0o600),
			os.WriteFile(config, []byte(corefile(zone)), 0o600))
		if err != nil {
			return err
		}
		ns := p.server
		p.server = nil // the client's only server is here already
		target := netip.AddrPortFrom(serverAddr.Addr(), dnsPort)
		p.targets = map[bench.Service]netip.AddrPort{bench.DNS: target}
		return p.daemon(ns, exec.Command(path, "-conf", config, "-quiet"), func(ctx context.Context) error {
			// It listens on TCP as well, where a refusal comes at once: the kernel soon holds back those for UDP.
			if err := process.Listening(p.client, target)(ctx); err != nil {
				return err
			}
			return process.Eventually(ctx, func(ctx context.Context) error { return resolves(ctx, p.client, target) })
		})
	})
}

func corefile(zone string) string {
	return fmt.Sprintf(`.:%d {
	errors
	file %s %s {
		reload 0
	}
	cache 30
	loadbalance
}
`, dnsPort, zone, clusterZone)
}

// zoneFile has bench.DNSName and other Services' names, all in all n.
func zoneFile(n int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "$ORIGIN %s.\n$TTL 5\n@ SOA ns.dns hostmaster 1 7200 1800 86400 5\n@ NS ns.dns\nns.dns A %s\n",
		clusterZone, serverAddr.Addr())
	fmt.Fprintf(&b, "%s. A 10.97.0.1\n", bench.DNSName)
	for i := 1; i < n; i++ {
		fmt.Fprintf(&b, "s%d.default.svc A 10.96.%d.%d\n", i, i>>8, i&0xff)
	}
	return b.String()
}

// resolves asks once for bench.DNSName.
func resolves(ctx context.Context, ns *tap.Namespace, server netip.AddrPort) error {
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (c net.Conn, err error) {
		err = ns.Do(func() error {
			c, err = new(net.Dialer).DialContext(ctx, network, server.String())
			return err
		})
		return c, err
	}}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	_, err := r.LookupNetIP(ctx, "ip4", bench.DNSName+".")
	return err
}

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
	// resolveTimeout is how long resolves waits for an answer. The question is asked again after that.
	resolveTimeout = 250 * time.Millisecond
)

// CoreDNS returns a Topology with CoreDNS at the other end of a veth pair. CoreDNS has as many names (1 to 65536) as a
// cluster has Services, and bench.DNSName is one of them. "make peers" builds the program. Its configuration is that of
// Kubernetes, with two differences: metrics and health are left out, and the zone is a file, since the kubernetes
// plugin needs an API server. The names and their time to live are the same. Both plugins have the cache before them,
// so a name that is asked for repeatedly is answered from the cache.
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
			// CoreDNS listens on TCP as well. TCP is refused at once; the kernel rate-limits refusals of UDP.
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

// zoneFile returns a zone with n names of Services, bench.DNSName among them.
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

// resolves asks for bench.DNSName once.
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

package baseline

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Mode is how kube-proxy tells the kernel about Services.
type Mode string

// The current modes of kube-proxy that are documented for Linux.
const (
	IPTables Mode = "iptables"
	NFTables Mode = "nftables"
)

// clusterRange is the range of the pods' addresses, as in kube-proxy's --cluster-cidr. kube-proxy masquerades clients
// outside of this range.
var clusterRange = netip.MustParsePrefix("198.18.0.0/15")

// masquerade is the bit of the packet mark that kube-proxy uses to ask for masquerading.
const masquerade = "0x4000"

// servicePort is one Service port, the unit for which kube-proxy makes rules.
type servicePort struct {
	name      string // unique, of letters, digits and dashes
	protocol  string // tcp or udp
	frontend  netip.AddrPort
	endpoints []netip.AddrPort
}

// hash stands for the hash that kube-proxy puts into the names of its chains.
func (s servicePort) hash() string { return strings.ToUpper(s.name + "-" + s.protocol[:1]) }

// loadedServices returns the ports of n Services. The measured Service, with TCP and UDP, is in the middle, so that a
// linear search from the beginning goes through half of the list, which is the average. The other Services have two
// endpoints each, at addresses that nobody has.
func loadedServices(n int, frontend netip.AddrPort, endpoints []netip.AddrPort) []servicePort {
	var out []servicePort
	for i := range n {
		if i == n/2 {
			for _, protocol := range []string{"tcp", "udp"} {
				out = append(out, servicePort{"measured", protocol, frontend, endpoints})
			}
			continue
		}
		hi, lo := byte(i>>8), byte(i)
		out = append(out, servicePort{
			name:     fmt.Sprintf("s%d", i),
			protocol: "tcp",
			frontend: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, hi, lo}), 80),
			endpoints: []netip.AddrPort{
				netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, hi, lo}), 8080),
				netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 2, hi, lo}), 8080),
			},
		})
	}
	return out
}

// transaction is how many Service ports are loaded at a time. A transaction is one netlink message, which must fit into
// the sender's buffer: twice net.core.wmem_max without privileges, 416 KiB by default.
const transaction = 64

// iptablesRules returns inputs of iptables-restore. The chains are those of kube-proxy. Comments are left out, as
// kube-proxy does in large clusters. KUBE-SERVICES has one rule for each Service port, in the order of services;
// kube-proxy's own order is that of a Go map.
func iptablesRules(services []servicePort) []string {
	var b strings.Builder
	b.WriteString(`*filter
:KUBE-FORWARD - [0:0]
-A FORWARD -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark ` + masquerade + `/` + masquerade + ` -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark ` + masquerade + `/` + masquerade + ` -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark ` + masquerade + `
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark ` + masquerade + `
COMMIT
`)
	for some := range slices.Chunk(services, transaction) {
		b.WriteString("*nat\n")
		for _, s := range some {
			s.iptables(&b)
		}
		b.WriteString("COMMIT\n")
	}
	return []string{b.String()}
}

func (s servicePort) iptables(b *strings.Builder) {
	chain := func(i int) string { return fmt.Sprintf("KUBE-SEP-%s-%d", s.hash(), i) }
	svc := "KUBE-SVC-" + s.hash()
	fmt.Fprintf(b, ":%s - [0:0]\n", svc)
	for i := range s.endpoints {
		fmt.Fprintf(b, ":%s - [0:0]\n", chain(i))
	}
	to := fmt.Sprintf("-d %s/32 -p %s -m %s --dport %d", s.frontend.Addr(), s.protocol, s.protocol, s.frontend.Port())
	fmt.Fprintf(b, "-A KUBE-SERVICES %s -j %s\n", to, svc)
	fmt.Fprintf(b, "-A %s ! -s %s %s -j KUBE-MARK-MASQ\n", svc, clusterRange, to)
	for i, endpoint := range s.endpoints {
		chance := ""
		if left := len(s.endpoints) - i; left > 1 {
			chance = fmt.Sprintf("-m statistic --mode random --probability %.10f ", 1/float64(left))
		}
		fmt.Fprintf(b, "-A %s %s-j %s\n", svc, chance, chain(i))
		fmt.Fprintf(b, "-A %s -s %s/32 -j KUBE-MARK-MASQ\n", chain(i), endpoint.Addr())
		fmt.Fprintf(b, "-A %s -p %s -m %s -j DNAT --to-destination %s\n", chain(i), s.protocol, s.protocol, endpoint)
	}
}

// elements is how many map elements are added at a time. Elements take less room than rules.
const elements = 500

// nftablesRules returns inputs of nft, one transaction each. They make kube-proxy's table, in which one lookup in a
// verdict map finds a Service's chain. The map is filled last, since the kernel checks all reachable chains in every
// transaction.
func nftablesRules(services []servicePort) []string {
	out := []string{`table ip kube-proxy {
	set cluster-ips { type ipv4_addr; }
	map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
	chain mark-for-masquerade { meta mark set meta mark or ` + masquerade + `; }
	chain masquerading {
		meta mark and ` + masquerade + ` == 0 return
		meta mark set meta mark xor ` + masquerade + `
		masquerade fully-random
	}
	chain services { ip daddr . meta l4proto . th dport vmap @service-ips; }
	chain cluster-ips-check { ip daddr @cluster-ips reject; }
	chain filter-forward {
		type filter hook forward priority -110;
		ct state new jump cluster-ips-check
	}
	chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
	chain nat-output { type nat hook output priority -100; jump services; }
	chain nat-postrouting { type nat hook postrouting priority srcnat; jump masquerading; }
}
`}
	for some := range slices.Chunk(services, transaction) {
		var b strings.Builder
		for _, s := range some {
			s.nftables(&b)
		}
		out = append(out, b.String())
	}
	for some := range slices.Chunk(services, elements) {
		var b strings.Builder
		for _, s := range some {
			fmt.Fprintf(&b, "add element ip kube-proxy cluster-ips { %s }\n", s.frontend.Addr())
			fmt.Fprintf(&b, "add element ip kube-proxy service-ips { %s . %s . %d : goto service-%s }\n",
				s.frontend.Addr(), s.protocol, s.frontend.Port(), s.hash())
		}
		out = append(out, b.String())
	}
	return out
}

func (s servicePort) nftables(b *strings.Builder) {
	const table = "ip kube-proxy"
	chain := func(i int) string { return fmt.Sprintf("endpoint-%s-%d", s.hash(), i) }
	svc := "service-" + s.hash()
	fmt.Fprintf(b, "add chain %s %s\n", table, svc)
	fmt.Fprintf(b, "add rule %s %s ip daddr %s %s dport %d ip saddr != %s jump mark-for-masquerade\n",
		table, svc, s.frontend.Addr(), s.protocol, s.frontend.Port(), clusterRange)
	var choices []string
	for i, endpoint := range s.endpoints {
		choices = append(choices, fmt.Sprintf("%d : goto %s", i, chain(i)))
		fmt.Fprintf(b, "add chain %s %s\n", table, chain(i))
		fmt.Fprintf(b, "add rule %s %s ip saddr %s jump mark-for-masquerade\n", table, chain(i), endpoint.Addr())
		fmt.Fprintf(b, "add rule %s %s meta l4proto %s dnat to %s\n", table, chain(i), s.protocol, endpoint)
	}
	fmt.Fprintf(b, "add rule %s %s numgen random mod %d vmap { %s }\n", table, svc, len(choices), strings.Join(choices, ", "))
}

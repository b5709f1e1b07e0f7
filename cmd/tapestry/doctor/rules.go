package doctor

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
)

// maxChains is how many chains are listed at most; kube-proxy makes one for each Service.
const maxChains = 4

// rules looks for rules of kube-proxy in the kernel.
func rules() Rules {
	var r Rules
	_, err := net.InterfaceByName("kube-ipvs0")
	r.IPVS = err == nil
	// Only root may read this file. For other users the check below reports that rules were not read.
	names, _ := os.ReadFile("/proc/self/net/ip_tables_names")
	r.Legacy = slices.Contains(strings.Fields(string(names)), "nat")
	if !hasCapNetAdmin() {
		r.Error = "reading them needs CAP_NET_ADMIN"
		return r
	}
	conn, err := nftables.New()
	if err != nil {
		r.Error = err.Error()
		return r
	}
	// This list includes the rules of iptables if it is iptables-nft. Only the name of its tables shows
	// iptables-legacy.
	chains, err := conn.ListChains()
	if err != nil {
		r.Error = fmt.Sprintf("list chains of nftables: %v", err)
		return r
	}
	for _, c := range chains {
		if kubeProxys(c.Table.Name, c.Name) {
			r.Chains = append(r.Chains, fmt.Sprintf("%s %s %s", familyName(c.Table.Family), c.Table.Name, c.Name))
		}
	}
	slices.Sort(r.Chains)
	if n := len(r.Chains); n > maxChains {
		r.Chains = append(r.Chains[:maxChains], fmt.Sprintf("and %d more", n-maxChains))
	}
	return r
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyINet:
		return "inet"
	}
	return fmt.Sprint(f)
}

package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/localapi"
)

// Announcing is what the announcers of the node say, and what the kernel does with what they draw here.
type Announcing struct {
	Claims   []announce.Claim
	Sessions []announce.Session
	// NoForward are the settings that keep the kernel from forwarding, "net.ipv4.ip_forward" for instance.
	NoForward []string
	// Strict are the interfaces of the host with a strict rp_filter.
	Strict []string
}

// askAnnouncers asks what announcers have told the agent. An agent without them has no such tables.
func askAnnouncers(ctx context.Context, c *localapi.Client, nics []Interface) Announcing {
	var a Announcing
	a.Claims, _ = localapi.Claims.Ask(ctx, c)
	a.Sessions, _ = localapi.Sessions.Ask(ctx, c)
	for _, name := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		if setting(name) == "0" {
			a.NoForward = append(a.NoForward, name)
		}
	}
	all := setting("net.ipv4.conf.all.rp_filter")
	for _, nic := range nics {
		// The greater of the two counts (ip-sysctl), and 2 is loose.
		if own := setting("net.ipv4.conf." + nic.Name + ".rp_filter"); nic.Name != "lo" && max(own, all) == "1" {
			a.Strict = append(a.Strict, nic.Name)
		}
	}
	return a
}

// setting returns a setting of the kernel, "" when it cannot be read.
func setting(name string) string {
	data, _ := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	return strings.TrimSpace(string(data))
}

// checkAnnouncers checks that clients find the addresses of load balancers that this node announces, and get in.
func checkAnnouncers(f *Facts) []Finding {
	const check = "announcers"
	if f.Agent == nil {
		return nil
	}
	a := &f.Agent.Announcing
	if len(a.Claims)+len(a.Sessions) == 0 {
		return ok(check, "this node announces no address of a load balancer")
	}
	list := append(checkClaims(check, a), checkSessions(check, a)...)
	ranges := f.Agent.LoadBalancers.Ranges
	for _, c := range a.Claims {
		if !addressing.Contains(ranges, c.Addr) && !slices.Contains(f.Agent.Addresses, c.Addr) {
			list = append(list, Finding{check, Error, fmt.Sprintf("%s is announced, and no range of the host TAP has it, so this node drops what comes for it", c.Addr),
				"name its range in hostTAP.loadBalancerCIDRs of the chart (tapestry host-tap --load-balancer-cidr)"})
			break
		}
	}
	if len(a.Sessions) > 0 && len(ranges) == 0 {
		list = append(list, Finding{check, Error, "routers are told of addresses, and the host TAP has no range of load balancers",
			"name the ranges in hostTAP.loadBalancerCIDRs of the chart (tapestry host-tap --load-balancer-cidr)"})
	}
	for _, name := range a.NoForward {
		if slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Addr().Is4() == strings.Contains(name, "ipv4") }) {
			list = append(list, Finding{check, Error, "the kernel does not forward what comes for load balancers: " + name + " is 0", "sysctl -w " + name + "=1"})
		}
	}
	if len(a.Strict) > 1 {
		list = append(list, Finding{check, Unknown, fmt.Sprintf("rp_filter is strict on %s: clients whose way back leads through another interface are dropped", strings.Join(a.Strict, ", ")),
			"if there are such, sysctl -w net.ipv4.conf.NAME.rp_filter=2 for the interface by which they come"})
	}
	if len(list) == 0 {
		return ok(check, "%d addresses are announced by ARP and NDP, %d routers have a session", len(a.Claims), len(a.Sessions))
	}
	return list
}

func checkClaims(check string, a *Announcing) (list []Finding) {
	for _, c := range a.Claims {
		switch {
		case c.State == announce.Failed && strings.Contains(c.Problem, "NET_RAW"):
			return []Finding{{check, Error, c.Problem, "give the announcer NET_RAW: announce.l2.enabled of the chart does, unless a policy of the cluster takes it away"}}
		case c.State == announce.Failed:
			list = append(list, Finding{check, Error, c.Problem, "see spec.interfaces of the L2Advertisement, and the announcer's log"})
		case c.State == announce.Conflict:
			list = append(list, Finding{check, Warning, c.Problem, "find the machine by its Ethernet address"})
		}
	}
	return list
}

func checkSessions(check string, a *Announcing) (list []Finding) {
	for _, s := range a.Sessions {
		if s.State == "established" {
			if s.BFD != "" && s.BFD != "up" && s.Problem != "" {
				list = append(list, Finding{check, Warning, s.Problem, "see the router's own list of BFD sessions, and its log"})
			}
			continue
		}
		message := fmt.Sprintf("there is no session with the router %s at %s: it is %s", s.Peer, s.Address, s.State)
		if s.Problem != "" {
			message = s.Problem
		}
		list = append(list, Finding{check, Warning, message, "see that TCP to its port is let through, and that both sides have the same ASNs and password (BGPPeer, and the router's log)"})
	}
	return list
}

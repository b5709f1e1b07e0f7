// Package connectivity tries all ways through a cluster's network from pods, and checks the answers.
package connectivity

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"tapestry.dev/tapestry/cmd/tapestry/connectivity/talk"
	"tapestry.dev/tapestry/kube/stage"
)

// Check is one question from one pod.
type Check struct {
	Group string   // "pod-pod", "pod-service", ...
	Name  string   // the target, for people
	From  string   // the pod that asks
	Args  []string // arguments of this program in the pod
	// Judge says what is wrong with the output; "" means that nothing is.
	Judge func(stdout string) string
}

// Plan returns the checks for a stage, in order. outside is the "host:port" of a server outside the cluster, or "".
func Plan(s *stage.Stage, outside string) []Check {
	p := plan{s: s}
	for _, v6 := range []bool{false, true} {
		if addr(s.Pods["client"].Addrs, v6).IsValid() {
			p.family(v6)
		}
	}
	p.dns()
	p.egress(outside)
	return p.checks
}

type plan struct {
	s      *stage.Stage
	checks []Check
}

// servers returns the names of the pods that answer: one on the client's node, and one on another node if there is
// one.
func (p *plan) servers() []string {
	if _, two := p.s.Pods["far"]; two {
		return []string{"near", "far"}
	}
	return []string{"near"}
}

func (p *plan) family(v6 bool) {
	client, host := p.s.Pods["client"], p.s.Pods["host"]
	loopback := netip.MustParseAddr("127.0.0.1")
	if v6 {
		loopback = netip.IPv6Loopback()
	}
	hostReaches := addr(host.Addrs, v6).IsValid()
	for _, server := range p.servers() {
		pod, svc := p.s.Pods[server], p.s.Services[server]
		for _, network := range []string{"tcp", "udp"} {
			nodePort := svc.TCP
			if network == "udp" {
				nodePort = svc.UDP
			}
			// A server sees the pod's own address, whatever way the pod takes.
			seen := addr(client.Addrs, v6)
			p.ask("pod-pod", "client", network, at(pod.Addrs, v6, stage.ServerPort), server, seen)
			p.ask("pod-service", "client", network, at(svc.Addrs, v6, stage.ServicePort), server, seen)
			p.ask("hairpin", server, network, at(svc.Addrs, v6, stage.ServicePort), server, netip.Addr{})
			for _, n := range p.s.Nodes {
				p.ask("nodeport", "client", network, at(n.Addrs, v6, nodePort), server, seen)
			}
			if !hostReaches {
				continue
			}
			p.ask("host", "host", network, at(pod.Addrs, v6, stage.ServerPort), server, netip.Addr{})
			p.ask("host", "host", network, at(svc.Addrs, v6, stage.ServicePort), server, netip.Addr{})
			for _, n := range p.s.Nodes {
				p.ask("nodeport", "host", network, at(n.Addrs, v6, nodePort), server, netip.Addr{})
			}
			p.ask("nodeport", "host", network, netip.AddrPortFrom(loopback, nodePort), server, netip.Addr{})
		}
	}
	p.spread(v6)
}

// ask adds a check that the server answers and sees the client's address as seen. If seen is invalid, any address is
// right. If the target has no address in the family, ask adds nothing.
func (p *plan) ask(group, from, network string, to netip.AddrPort, server string, seen netip.Addr) {
	if !to.IsValid() || to.Port() == 0 {
		return
	}
	p.checks = append(p.checks, Check{
		Group: group, From: from, Name: network + " " + to.String() + " -> " + server,
		Args: inPod("ask", network, to.String()),
		Judge: func(stdout string) string {
			a, problem := answer[talk.Asked](stdout)
			switch {
			case problem != "":
				return problem
			case a.Error != "":
				return a.Error
			case a.Pod != server:
				return fmt.Sprintf("pod %s answered", a.Pod)
			case seen.IsValid() && host(a.Client) != seen:
				return fmt.Sprintf("the server sees %s, want %s", a.Client, seen)
			}
			return ""
		},
	})
}

// spreadTimes is how often a Service with two pods is asked. The probability that one of them is never chosen is
// 2^-19.
const spreadTimes = 20

// spread asks a Service with all servers often enough that each answers at least once.
func (p *plan) spread(v6 bool) {
	to := at(p.s.Services["both"].Addrs, v6, stage.ServicePort)
	if !to.IsValid() {
		return
	}
	p.checks = append(p.checks, Check{
		Group: "pod-service", From: "client", Name: "tcp " + to.String() + " -> all of " + strings.Join(p.servers(), ", "),
		Args: inPod("ask", "--times", fmt.Sprint(spreadTimes), "tcp", to.String()),
		Judge: func(stdout string) string {
			missing := p.servers()
			for line := range strings.Lines(stdout) {
				a, problem := answer[talk.Asked](line)
				if problem != "" {
					return problem
				}
				if a.Error != "" {
					return a.Error
				}
				missing = slices.DeleteFunc(missing, func(s string) bool { return s == a.Pod })
			}
			if len(missing) > 0 {
				return strings.Join(missing, ", ") + " was never chosen"
			}
			return ""
		},
	})
}

func (p *plan) dns() {
	near := p.s.Services["near"]
	for _, from := range []string{"client", "host"} {
		for _, name := range []string{"near", "near." + p.s.Namespace, "near." + p.s.Namespace + ".svc.cluster.local"} {
			p.resolve("dns", from, "host", name, texts(near.Addrs))
		}
	}
	p.resolve("dns", "client", "srv", "_line._tcp.near."+p.s.Namespace+".svc.cluster.local",
		[]string{fmt.Sprintf("near.%s.svc.cluster.local:%d", p.s.Namespace, stage.ServicePort)})
	for _, a := range near.Addrs {
		p.resolve("dns", "client", "ptr", a.String(), []string{"near." + p.s.Namespace + ".svc.cluster.local"})
	}
	p.resolve("dns", "client", "host", "none."+p.s.Namespace+".svc.cluster.local.", nil)
}

func (p *plan) resolve(group, from, kind, name string, want []string) {
	slices.Sort(want)
	p.checks = append(p.checks, Check{
		Group: group, From: from, Name: kind + " " + name, Args: inPod("resolve", kind, name),
		Judge: func(stdout string) string {
			got, problem := answer[struct {
				Answers []string
				Error   string
			}](stdout)
			switch {
			case problem != "":
				return problem
			case want == nil && strings.Contains(got.Error, "no such host"):
				return ""
			case got.Error != "":
				return got.Error
			case !slices.Equal(got.Answers, want):
				return fmt.Sprintf("got %v, want %v", got.Answers, want)
			}
			return ""
		},
	})
}

// egress asks the API server through its Service, since the API server is outside all pod networks. It also asks the
// server outside the cluster, if one is given.
func (p *plan) egress(outside string) {
	p.checks = append(p.checks, Check{
		Group: "egress", From: "client", Name: "https://kubernetes.default.svc", Args: inPod("get", "https://kubernetes.default.svc/version"),
		Judge: func(stdout string) string {
			f, problem := answer[talk.Fetched](stdout)
			switch {
			case problem != "":
				return problem
			case f.Error != "":
				return f.Error
			case f.Status == 0: // it was reached, whatever the status is
				return "no answer"
			}
			return ""
		},
	})
	if outside == "" {
		return
	}
	p.checks = append(p.checks, Check{
		Group: "egress", From: "client", Name: "http://" + outside, Args: inPod("get", "http://"+outside+"/"),
		Judge: func(stdout string) string {
			f, problem := answer[talk.Fetched](stdout)
			if problem == "" {
				problem = f.Error
			}
			return problem
		},
	})
}

func answer[T any](stdout string) (v T, problem string) {
	if err := json.Unmarshal([]byte(stdout), &v); err != nil {
		return v, fmt.Sprintf("not understood: %q", stdout)
	}
	return v, ""
}

// addr returns the list's address of a family, or an invalid one.
func addr(list []netip.Addr, v6 bool) netip.Addr {
	for _, a := range list {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

// at returns a port at the list's address of a family, or an invalid one.
func at(list []netip.Addr, v6 bool, port uint16) netip.AddrPort {
	if a := addr(list, v6); a.IsValid() {
		return netip.AddrPortFrom(a, port)
	}
	return netip.AddrPort{}
}

func host(s string) netip.Addr {
	ap, _ := netip.ParseAddrPort(s) // after an error, the zero Addr equals no wanted address
	return ap.Addr().Unmap()
}

func texts(list []netip.Addr) []string {
	var out []string
	for _, a := range list {
		out = append(out, a.String())
	}
	return out
}

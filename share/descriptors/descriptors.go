// Package descriptors shares out the descriptors that an agent may have: each part of the agent that uses descriptors
// gets its number from one Plan. The sum of all numbers is never more than the limit of the process, so that no client,
// pod or object takes the descriptors of another part, and never those that the node itself needs.
//
// A part that holds more than one descriptor for a unit, as a connection from one host socket to another does, is
// counted with all of them. Parts enforce their numbers themselves; how one part shares out its units among clients is
// the business of package share.
package descriptors

import "golang.org/x/sys/unix"

// User is a part of the agent that uses descriptors.
type User int

// The users of descriptors.
const (
	Own              User = iota // what grows with nobody: files, pollers, the tunnel, the API server, the keeper
	Pods                         // attached pods, a TAP each, also as the duplicate for the next keeper
	Listeners                    // sockets of node ports and hostPorts, each also as the duplicate for the next keeper
	CheckPorts                   // healthCheckNodePorts, a socket each
	EgressTCP                    // TCP of pods here with host sockets: egress, and NodePorts to them
	EgressUDP                    // host sockets of pods' UDP
	EgressPings                  // host sockets of pods' echoes
	NodePortConns                // TCP of NodePorts to other backends: two sockets if the backend is on the host
	NodePortArrivals             // accepted TCP of NodePorts that waits until a connection to a backend is opened
	NodePortUDP                  // UDP sessions of NodePorts, whose backends may be on the host
	IngressClients
	IngressRefused  // sockets in which refused connections of IngressClients are under way
	IngressBackends // connections of Ingress to backends on the host
	HostProxy       // connections of the node's processes through the host proxy, whose far ends may be on the host
	Questions       // questions of DNS that wait for servers outside
	Checks          // connections of load balancers to healthCheckNodePorts
	Local           // connections to one of the agent's two Unix sockets
	Reports         // connections to one of the agent's two HTTP addresses, for health and metrics
	users
)

// part is what a user gets.
type part struct {
	text   string // what one unit is, for people
	weight int    // descriptors out of 1,024
	each   int    // descriptors of one unit
	most   int    // units; 0 means no bound but the limit
}

// parts lists the weights, whose sum is 1,024. What the bounds leave of a large limit is for EgressTCP and
// IngressClients, in halves. A bound is what the part can use: pods of one node, ports of the node port range in both
// protocols and families, or what was bounded before for the sake of memory or the host's ports.
var parts = [users]part{
	Own:              {"the agent itself", 104, 1, 512},
	Pods:             {"pods", 224, 2, 1024},
	Listeners:        {"sockets of node ports and hostPorts", 80, 2, 12288},
	CheckPorts:       {"healthCheckNodePorts", 16, 1, 2768},
	EgressTCP:        {"TCP connections of pods to the outside, and through NodePorts to pods of this node", 120, 1, 0},
	EgressUDP:        {"UDP sockets of pods to the outside", 40, 1, 16384},
	EgressPings:      {"pinging pods", 8, 1, 1024},
	NodePortConns:    {"TCP connections through NodePorts to other backends", 96, 2, 4096},
	NodePortArrivals: {"accepted TCP connections that wait for a backend", 24, 1, 2048},
	NodePortUDP:      {"UDP sessions through NodePorts", 48, 1, 16384},
	IngressClients:   {"connections of clients of Ingress", 80, 1, 0},
	IngressRefused:   {"sockets that keep refused connections of clients of Ingress", 8, 1, 256},
	IngressBackends:  {"connections of Ingress to backends on the host", 40, 1, 4096},
	HostProxy:        {"connections through the host proxy", 16, 2, 1024},
	Questions:        {"questions to DNS servers outside", 32, 1, 1000},
	Checks:           {"connections of load balancers' health checks", 8, 1, 256},
	Local:            {"connections to each Unix socket of the agent", 64, 2, 264},
	Reports:          {"connections to each of health and metrics", 16, 2, 64},
}

const (
	whole = 1024
	// ceiling is the limit beyond which nothing gets more. It keeps what each connection costs in memory in bounds.
	ceiling = 1 << 21
	// Useful is the limit from which on a busy node lacks nothing.
	Useful = 16384
)

// Plan says how many units each user of descriptors may have.
type Plan struct {
	limit int
	units [users]int
}

// For returns the Plan for a process that may have limit descriptors. Each user gets one unit at least, also where the
// limit is too small for any use.
func For(limit uint64) Plan {
	p := Plan{limit: int(min(limit, 1<<31-1))}
	n := min(p.limit, ceiling)
	left := n
	for u, part := range parts {
		p.units[u] = n * part.weight / whole / part.each
		if part.most > 0 {
			p.units[u] = min(p.units[u], part.most)
		}
		p.units[u] = max(1, p.units[u])
		left -= p.units[u] * part.each
	}
	left = max(0, left)
	p.units[EgressTCP] += left / 2
	p.units[IngressClients] += left / 2
	return p
}

// Of returns how many units u may have, at least 1.
func (p Plan) Of(u User) int { return p.units[u] }

// Limit returns the limit that the Plan is for.
func (p Plan) Limit() int { return p.limit }

// Part is one line of a Plan, for people.
type Part struct {
	For  string
	Most int // units
}

// Parts returns what each user may have, in a fixed order.
func (p Plan) Parts() []Part {
	list := make([]Part, 0, users)
	for u, part := range parts {
		list = append(list, Part{part.text, p.units[u]})
	}
	return list
}

// Ours returns the Plan of this process.
func Ours() Plan { return For(limit()) }

// limit returns how many descriptors this process may have. The Go runtime raised the soft limit to the hard one when
// the process started.
func limit() uint64 {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) != nil {
		return 1024
	}
	return lim.Cur
}

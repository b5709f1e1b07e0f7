// Package status asks the agent of a node for its state and prints it.
package status

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/cmd/output"
	"tapestry.dev/tapestry/counter"
	"tapestry.dev/tapestry/localapi"
)

// askTime is how long an agent may take to answer. Each of its checks may take a second.
const askTime = 10 * time.Second

// SocketFlag is --socket.
func SocketFlag(to *string) cli.Flag {
	return &cli.StringFlag{Name: "socket", Usage: "`SOCKET` of the agent's --local-api", Value: localapi.DefaultSocket, Destination: to}
}

// report is everything that an agent reports.
type report struct {
	Node     localapi.Node      `json:"node"`
	Peers    []localapi.Peer    `json:"peers"`
	Pods     []localapi.Pod     `json:"pods"`
	Turns    []announce.Turn    `json:"l2,omitempty"`
	Sessions []announce.Session `json:"bgpSessions,omitempty"`
	Problems []localapi.Problem `json:"problems"`
	Counters counter.List       `json:"counters"`
}

// Command is "tapestry status".
func Command() *cli.Command {
	var socket, format, table string
	return &cli.Command{
		Name:  "status",
		Usage: "show the state of this node's network",
		Description: "Asks the agent of this node. Exits with 1 if the node is not ready. In a cluster:\n" +
			"kubectl -n kube-system exec ds/tapestry -- tapestry status\n\n" +
			"With --table it shows one complete table of the agent:\n" + tables(),
		Flags: []cli.Flag{
			SocketFlag(&socket), output.Flag(&format),
			&cli.StringFlag{Name: "table", Usage: "show the table `NAME`", Destination: &table},
		},
		Action: func(ctx *cli.Context) error {
			within, cancel := context.WithTimeout(ctx.Context, askTime)
			defer cancel()
			c := &localapi.Client{Path: socket}
			if table != "" {
				return Reachable(showTable(within, ctx.App.Writer, c, table, format), socket)
			}
			r, err := ask(within, c)
			if err != nil {
				return Reachable(err, socket)
			}
			err = output.Write(ctx.App.Writer, format, r, func(w io.Writer) error { return r.print(w, time.Now()) })
			if err == nil && len(r.Node.Missing) > 0 {
				return cli.Exit("", 1)
			}
			return err
		},
	}
}

// Print asks an agent, and prints what "tapestry status" shows.
func Print(ctx context.Context, w io.Writer, c *localapi.Client) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	r, err := ask(ctx, c)
	if err != nil {
		return Reachable(err, c.Path)
	}
	return r.print(w, time.Now())
}

// Reachable adds to an error what to check if the agent did not answer.
func Reachable(err error, socket string) error {
	if !errors.Is(err, localapi.ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: check that the agent runs on this node and that its --local-api is %s", err, socket)
}

func ask(ctx context.Context, c *localapi.Client) (r report, err error) {
	if r.Node, err = c.Node(ctx); err != nil {
		return r, err
	}
	if r.Peers, err = localapi.Peers.Ask(ctx, c); err != nil {
		return r, err
	}
	if r.Pods, err = localapi.Pods.Ask(ctx, c); err != nil {
		return r, err
	}
	if r.Problems, err = localapi.Problems.Ask(ctx, c); err != nil {
		return r, err
	}
	// An agent that does not know the cluster yet cannot say.
	r.Turns, _ = localapi.Turns.Ask(ctx, c)
	r.Sessions, _ = localapi.Sessions.Ask(ctx, c)
	r.Counters, err = c.Counters(ctx)
	return r, err
}

// tables returns the names and contents of the tables, one per line.
func tables() string {
	var b strings.Builder
	for _, t := range localapi.All {
		name, help := t.Is()
		fmt.Fprintf(&b, "  %-10s %s\n", name, help)
	}
	return b.String()
}

func showTable(ctx context.Context, w io.Writer, c *localapi.Client, name, format string) error {
	for _, t := range localapi.All {
		if known, _ := t.Is(); known != name {
			continue
		}
		rows, headings, cells, err := t.Fetch(ctx, c)
		if err != nil {
			return err
		}
		return output.Write(w, format, rows, func(w io.Writer) error { return printTable(w, headings, cells) })
	}
	return cli.Exit(fmt.Sprintf("there is no table %q: expected one of\n%s", name, tables()), 2)
}

func printTable(w io.Writer, headings []string, rows [][]string) error {
	t := output.Columns(w)
	for _, cells := range append([][]string{headings}, rows...) {
		t.Row(cells...)
	}
	return t.Flush()
}

// print prints a node as aligned tables.
func (r *report) print(w io.Writer, now time.Time) error {
	n := &r.Node
	t := output.Columns(w)
	row := func(name, format string, args ...any) { t.Row(name, fmt.Sprintf(format, args...)) }
	row("Node", "%s (%s)", n.Name, join(n.Addresses))
	if len(n.Missing) == 0 {
		row("Ready", "yes")
	}
	for i, m := range n.Missing {
		name := ""
		if i == 0 {
			name = "Ready"
			m = "no: " + m
		}
		row(name, "%s", m)
	}
	row("Agent", "%s, for %s", n.Version, duration(now.Sub(n.Started)))
	if n.Restarts > 0 {
		row("Restarts", "%d, the last one %s ago: %s", n.Restarts, duration(now.Sub(n.LastEnded)), n.LastEnd)
	}
	if d := n.Descriptors; d.Limit > 0 {
		row("Descriptors", "%d of %d in use", d.InUse, d.Limit)
	}
	if n.Updated.IsZero() {
		row("Objects", "from %s, not in force yet", n.Source)
		return t.Flush()
	}
	row("Objects", "from %s, in force for %s", n.Source, duration(now.Sub(n.Updated)))
	row("Privileges", "%s", privileges(n))
	row("Load balancers", "%s", balancers(&n.LoadBalancers))
	row("Pod ranges", "%s, MTU %d", join(n.PodCIDRs), n.MTU)
	row("Cluster DNS", "%s", join(n.DNS))
	get := r.Counters.Get
	row("Services", "%.0f with %.0f endpoints, %.0f node ports, %.0f hostPorts",
		get("tapestry_services"), get("tapestry_endpoints"), get("tapestry_node_ports"), get("tapestry_host_ports"))
	row("Flows", "%s", counts(r.Counters.Of("tapestry_flows")))
	row("Flows freed", "%s", counts(r.Counters.Of("tapestry_flows_freed_total")))
	row("Outside", "%s", counts(r.Counters.Of("tapestry_outside")))
	row("Drops", "%s", counts(r.Counters.Of("tapestry_drops_total")))
	if err := t.Flush(); err != nil {
		return err
	}
	if err := section(w, localapi.Peers, r.Peers); err != nil {
		return err
	}
	if err := section(w, localapi.Pods, r.Pods); err != nil {
		return err
	}
	if err := section(w, localapi.Turns, r.Turns); err != nil {
		return err
	}
	if err := section(w, localapi.Sessions, r.Sessions); err != nil {
		return err
	}
	if len(r.Problems) > 0 {
		fmt.Fprintln(w, "\nPROBLEMS")
	}
	for _, p := range r.Problems {
		output.Line(w, "  "+p.Text)
	}
	return nil
}

// section prints an empty line and the rows of a table. It prints nothing if there are no rows.
func section[T any](w io.Writer, t localapi.Table[T], rows []T) error {
	if len(rows) == 0 {
		return nil
	}
	var cells [][]string
	for i := range rows {
		cells = append(cells, t.Cells(&rows[i]))
	}
	fmt.Fprintln(w)
	return printTable(w, t.Columns, cells)
}

// privileges says which rights the node has (design decision 14), and what that means for users.
func privileges(n *localapi.Node) string {
	if n.HostTAP {
		return "host TAP: processes of the host reach pods and Services"
	}
	if n.HostProxy != "" {
		return "none: processes of the host reach pods and Services by the proxy (SOCKS5, HTTP CONNECT) at " + n.HostProxy
	}
	return "none: processes of the host do not reach pods and Services"
}

// balancers says how clients outside reach load balancers by the node.
func balancers(b *localapi.LoadBalancers) string {
	bgp := slices.Contains(b.Announcers, "bgp")
	switch b.Tier {
	case localapi.Announced:
		text := "announced: addresses in " + join(b.Ranges) + ", by ARP and NDP"
		if bgp {
			text += ", and to routers by BGP"
		}
		return text
	case localapi.HostTAP:
		text := "host TAP: addresses in " + join(b.Ranges) + ", where the network brings them to this node"
		if bgp {
			text += "; routers are told by BGP"
		}
		return text
	}
	return "host sockets: addresses of nodes only"
}

func duration(d time.Duration) string { return max(d, 0).Truncate(time.Second).String() }

// counts returns "a=1 b=2", or "none".
func counts(m map[string]float64) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if m[k] != 0 {
			out = append(out, fmt.Sprintf("%s=%.0f", k, m[k]))
		}
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, " ")
}

func join[T fmt.Stringer](list []T) string {
	texts := make([]string, len(list))
	for i, x := range list {
		texts[i] = x.String()
	}
	return strings.Join(texts, ",")
}

// Package status asks the agent of a node how it is, and shows the answer.
package status

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/cmd/tapestry/output"
	"tapestry.dev/tapestry/kube/cni"
)

// agentSocket is where an agent in a cluster listens.
const agentSocket = "/run/tapestry/agent.sock"

// askTime is how long an agent may take to answer: its checks take a second each.
const askTime = 10 * time.Second

// SocketFlag is --socket.
func SocketFlag(to *string) cli.Flag {
	return &cli.StringFlag{Name: "socket", Usage: "`SOCKET` of the agent", Value: agentSocket, Destination: to}
}

// nodeStatus is all that an agent tells.
type nodeStatus struct {
	cni.Status
	Detail cni.Detail `json:"detail"`
	Stats  cni.Stats  `json:"stats"`
}

// Command is "tapestry status".
func Command() *cli.Command {
	var socket, format string
	return &cli.Command{
		Name:  "status",
		Usage: "tell how the network of this node is",
		Description: "Asks the agent of this node, and exits with 1 when the node is not ready. In a cluster:\n" +
			"kubectl -n kube-system exec ds/tapestry -- tapestry status",
		Flags: []cli.Flag{SocketFlag(&socket), output.Flag(&format)},
		Action: func(ctx *cli.Context) error {
			s, err := askAgent(ctx.Context, socket)
			if err != nil {
				return err
			}
			err = output.Write(ctx.App.Writer, format, s, func(w io.Writer) error { return printNode(w, s, time.Now()) })
			if err == nil && len(s.Detail.Missing) > 0 {
				return cli.Exit("", 1)
			}
			return err
		},
	}
}

func askAgent(ctx context.Context, socket string) (s nodeStatus, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	c := cni.Client{Path: socket}
	if s.Status, err = c.Status(ctx); err != nil {
		return s, fmt.Errorf("%w: does the agent run on this node, and does it listen at --socket %s? It does once it knows the cluster; until then /readyz on its health port says what is missing", err, socket)
	}
	if s.Detail, err = c.Detail(ctx); err != nil {
		return s, err
	}
	s.Stats, err = c.Stats(ctx)
	return s, err
}

// printNode shows a node as aligned tables.
func printNode(w io.Writer, s nodeStatus, now time.Time) error {
	d := &s.Detail
	t := output.Columns(w)
	row := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	row("Node", "%s (%s)", s.Node, join(d.Addresses))
	if len(d.Missing) == 0 {
		row("Ready", "yes")
	}
	for i, m := range d.Missing {
		name := ""
		if i == 0 {
			name = "Ready"
			m = "no: " + m
		}
		row(name, "%s", m)
	}
	row("Agent", "%s, for %s", d.Version, duration(now.Sub(d.Started)))
	row("Objects", "from %s, in force for %s", d.Source, duration(now.Sub(d.Updated)))
	row("Privileges", "%s", privileges(d))
	row("Pod ranges", "%s, MTU %d", join(d.PodCIDRs), d.MTU)
	row("Cluster DNS", "%s", join(d.DNS))
	row("Services", "%d with %d endpoints, %d node ports, %d host ports", d.Services, d.Endpoints, d.NodePorts, d.HostPorts)
	row("Flows", "%s", counts(s.Stats.Flows))
	row("Drops", "%s", counts(s.Stats.Drops))
	if err := t.Flush(); err != nil {
		return err
	}
	if len(d.Peers) > 0 {
		fmt.Fprintln(t, "\nPEER\tENDPOINT\tHANDSHAKE\tANSWERED\tMTU\tRECEIVED\tSENT")
		for _, p := range d.Peers {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", p.Name, endpoint(&p), ago(p.HandshakeAge), ago(p.AnswerAge), p.MTU, size(p.Received), size(p.Sent))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if len(d.Pods) > 0 {
		fmt.Fprintln(t, "\nPOD\tADDRESSES\tSENT\tRECEIVED\tLOST\tOFFLOADS")
		for _, p := range d.Pods {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\n", p.Name, join(p.Addrs), size(p.FromBytes), size(p.ToBytes), p.Lost, p.Offloads)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if len(s.Problems) > 0 {
		fmt.Fprintln(w, "\nPROBLEMS")
	}
	for _, p := range s.Problems {
		fmt.Fprintln(w, "  "+p)
	}
	return nil
}

// privileges says what the node was given (design decision 14), and what follows.
func privileges(d *cni.Detail) string {
	switch {
	case d.HostPort && d.Announcements:
		return "host Port and link announcements"
	case d.HostPort:
		return "host Port: processes of the host reach pods and Services"
	case d.Announcements:
		return "link announcements; without a host Port, processes of the host do not reach pods and Services"
	}
	return "none: processes of the host do not reach pods and Services"
}

func endpoint(p *cni.PeerDetail) string {
	switch {
	case p.PublicKey == "":
		return "has announced no key"
	case !p.Endpoint.IsValid():
		return "never heard"
	}
	return p.Endpoint.String()
}

func ago(d time.Duration) string {
	if d < 0 {
		return "never"
	}
	return duration(d) + " ago"
}

func duration(d time.Duration) string { return max(d, 0).Truncate(time.Second).String() }

// counts gives "a=1 b=2", or "none".
func counts[N int | uint64](m map[string]N) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if m[k] != 0 {
			out = append(out, fmt.Sprintf("%s=%d", k, m[k]))
		}
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, " ")
}

// size gives bytes as people read them.
func size(n uint64) string {
	units := []string{"B", "kB", "MB", "GB", "TB"}
	f, i := float64(n), 0
	for f >= 1000 && i < len(units)-1 {
		f, i = f/1000, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}

func join[T fmt.Stringer](list []T) string {
	texts := make([]string, len(list))
	for i, x := range list {
		texts[i] = x.String()
	}
	return strings.Join(texts, ",")
}

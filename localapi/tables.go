package localapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"tapestry.dev/tapestry/counter"
)

// Table describes a list of things of one kind that an agent reports.
type Table[T any] struct {
	Name, Help string
	// Columns are the headings under which rows are shown to people. Cells returns a row's cells.
	Columns []string
	Cells   func(*T) []string
}

// The tables.
var (
	Peers = Table[Peer]{
		"peers", "other nodes, as the tunnel sees them",
		[]string{"PEER", "ENDPOINT", "HANDSHAKE", "ANSWERED", "MTU", "RECEIVED", "SENT"}, (*Peer).cells,
	}
	Pods = Table[Pod]{
		"pods", "pods of this node and the host, as attached to the packet path",
		[]string{"POD", "ADDRESSES", "SENT", "RECEIVED", "LOST", "OVER LIMIT", "OVER PACKETS", "OVER FLOWS", "OFFLOADS"}, (*Pod).cells,
	}
	Frontends = Table[Frontend]{
		"frontends", "addresses and ports of Services, and the backends that they lead to from this node",
		[]string{"SERVICE", "PORT", "FRONTEND", "PROTOCOL", "POLICY", "AFFINITY", "CHOICE", "BACKENDS"}, (*Frontend).cells,
	}
	Problems = Table[Problem]{
		"problems", "what is wrong with objects of the cluster",
		[]string{"SEVERITY", "PROBLEM"}, func(p *Problem) []string { return []string{p.Severity, p.Text} },
	}
	Policies = Table[Policy]{
		"policies", "policies of who may talk to whom, as this node judges by them",
		[]string{"POLICY", "MODE", "PODS", "SINCE", "PERMITTED", "DENIED", "PROBLEMS"}, (*Policy).cells,
	}
	// Explanations answers whether one end may reach a port of another: FROM, TO:PORT/PROTOCOL.
	Explanations = Table[Explanation]{Name: "explain", Help: "why a flow may be, or may not"}
	StagedFlows  = Table[StagedFlow]{
		"staged", "flows of this node's pods that would fare otherwise if staged policies were in force",
		[]string{"FROM", "TO", "WOULD BE", "BY", "BEGUN", "STANDING", "LAST"}, (*StagedFlow).cells,
	}
	DescriptorShares = Table[DescriptorShare]{
		"descriptors", "how many of what takes open files the agent may have",
		[]string{"MOST", "OF"}, func(d *DescriptorShare) []string { return []string{strconv.Itoa(d.Most), d.For} },
	}
	Counters = Table[counter.Counter]{
		"counters", "everything that is counted, as /metrics has it",
		[]string{"COUNTER", "VALUE", "MEANING"}, counterCells,
	}
)

// All lists the tables, in the order in which they are shown.
var All = []Shown{Peers, Pods, Frontends, Problems, Policies, StagedFlows, DescriptorShares, Turns, Claims, Routes, Sessions, Counters}

// Shown is a Table of any kind, for code that shows it to people.
type Shown interface {
	// Is returns the table's name and a description of its rows.
	Is() (name, help string)
	// Fetch asks c for the rows, and returns them as they are and as cells under headings.
	Fetch(ctx context.Context, c *Client) (rows any, headings []string, cells [][]string, err error)
}

// Is implements Shown.
func (t Table[T]) Is() (name, help string) { return t.Name, t.Help }

// Fetch implements Shown.
func (t Table[T]) Fetch(ctx context.Context, c *Client) (any, []string, [][]string, error) {
	rows, err := t.Ask(ctx, c)
	var cells [][]string
	for i := range rows {
		cells = append(cells, t.Cells(&rows[i]))
	}
	return rows, t.Columns, cells, err
}

// Ask asks an agent for the rows. args are the question, of a table that answers one.
func (t Table[T]) Ask(ctx context.Context, c *Client, args ...string) ([]T, error) {
	raw, err := c.rows(ctx, t.Name, args)
	rows := make([]T, len(raw))
	for i := 0; err == nil && i < len(raw); i++ {
		if jerr := json.Unmarshal(raw[i], &rows[i]); jerr != nil {
			err = fmt.Errorf("table %s: row %d of the agent is not a row of this table: %w", t.Name, i, jerr)
		}
	}
	if err != nil {
		return nil, err
	}
	return rows, nil
}

// Source is where a Server gets the rows of a table.
type Source struct {
	name  string
	rows  func(ctx context.Context, args []string) ([]json.RawMessage, error)
	users users
}

// For returns s for some users alone, out of those that may connect; none means all of these.
func (s Source) For(uids ...uint32) Source { s.users = uids; return s }

// users may ask for a table, or tell it; none means everybody who may connect.
type users []uint32

// refuse returns an error when a user is not among them.
func (u users) refuse(uid uint32, table string) error {
	if len(u) == 0 || slices.Contains(u, uid) {
		return nil
	}
	return fmt.Errorf("the table %q is not for user %d: only user %v may ask for it or tell it", table, uid, []uint32(u))
}

// From returns the Source of a table whose rows the func rows returns. Several goroutines may call rows at once.
func (t Table[T]) From(rows func(context.Context) ([]T, error)) Source {
	return t.Answers(func(ctx context.Context, _ []string) ([]T, error) { return rows(ctx) })
}

// Answers is From for a table whose rows answer a question, which anybody who may connect asks.
func (t Table[T]) Answers(rows func(ctx context.Context, args []string) ([]T, error)) Source {
	return Source{name: t.Name, rows: func(ctx context.Context, args []string) ([]json.RawMessage, error) {
		list, err := rows(ctx, args)
		if err != nil {
			return nil, fmt.Errorf("table %s: %w", t.Name, err)
		}
		raw := make([]json.RawMessage, len(list))
		for i := range list {
			if raw[i], err = json.Marshal(&list[i]); err != nil {
				return nil, fmt.Errorf("table %s, row %d: %w", t.Name, i, err)
			}
		}
		return raw, nil
	}}
}

// Peer is another node, as the tunnel sees it. Ages are in nanoseconds, negative for never.
type Peer struct {
	Name      string         `json:"name"`
	PublicKey string         `json:"publicKey,omitempty"` // "" when the node has announced none
	Endpoint  netip.AddrPort `json:"endpoint,omitzero"`   // the address that was heard last; zero for none
	// Silent are addresses of the node that did not answer when they were asked last.
	Silent []netip.AddrPort `json:"silent,omitempty"`
	// HandshakeAge is the time since the last handshake, AnswerAge the time since a probe through the tunnel was
	// answered.
	HandshakeAge time.Duration `json:"handshakeAge"`
	AnswerAge    time.Duration `json:"answerAge"`
	Received     uint64        `json:"receivedBytes"`
	Sent         uint64        `json:"sentBytes"`
	MTU          int           `json:"mtu"` // the largest packet inside the tunnel, in bytes
}

func (p *Peer) cells() []string {
	endpoint := p.Endpoint.String()
	switch {
	case p.PublicKey == "":
		endpoint = "has announced no key"
	case !p.Endpoint.IsValid():
		endpoint = "never heard"
	}
	if len(p.Silent) > 0 {
		var silent []string
		for _, a := range p.Silent {
			silent = append(silent, a.String())
		}
		endpoint += " (silent: " + strings.Join(silent, ", ") + ")"
	}
	return []string{p.Name, endpoint, ago(p.HandshakeAge), ago(p.AnswerAge), strconv.Itoa(p.MTU), size(p.Received), size(p.Sent)}
}

// Pod is a pod of this node, or the host, as an attachment of the packet path.
type Pod struct {
	Name  string       `json:"name"` // "namespace/name", or "host"
	Addrs []netip.Addr `json:"addrs,omitempty"`
	// From counts what the pod sent, and To what it was sent. Lost counts packets that its TAP did not take, and
	// OverLimit those that its limit did not allow.
	FromPackets uint64 `json:"fromPackets"`
	FromBytes   uint64 `json:"fromBytes"`
	ToPackets   uint64 `json:"toPackets"`
	ToBytes     uint64 `json:"toBytes"`
	Lost        uint64 `json:"lost,omitempty"`
	OverLimit   uint64 `json:"overLimit,omitempty"`
	// PacketsPerSecond and FlowsPerSecond are what the pod may send, 0 for no limit. OverPackets and OverFlows count
	// packets, and attempts to begin a flow, beyond that.
	PacketsPerSecond uint32 `json:"packetsPerSecond,omitempty"`
	FlowsPerSecond   uint32 `json:"flowsPerSecond,omitempty"`
	OverPackets      uint64 `json:"overPackets,omitempty"`
	OverFlows        uint64 `json:"overFlows,omitempty"`
	Offloads         string `json:"offloads,omitempty"`
}

func (p *Pod) cells() []string {
	var addrs []string
	for _, a := range p.Addrs {
		addrs = append(addrs, a.String())
	}
	return []string{p.Name, strings.Join(addrs, ","), size(p.FromBytes), size(p.ToBytes), fmt.Sprint(p.Lost), fmt.Sprint(p.OverLimit),
		over(p.OverPackets, p.PacketsPerSecond), over(p.OverFlows, p.FlowsPerSecond), p.Offloads}
}

// over shows what was beyond a limit, and the limit.
func over(n uint64, most uint32) string {
	if most == 0 {
		return "-"
	}
	return fmt.Sprintf("%d (%d/s)", n, most)
}

// Frontend is an address and port of a Service.
type Frontend struct {
	Service  string `json:"service"` // "namespace/name"
	Port     string `json:"port"`    // its name, or its number where it has none
	Frontend string `json:"frontend"`
	Protocol string `json:"protocol"`
	Policy   string `json:"policy,omitempty"`
	Affinity string `json:"affinity,omitempty"`
	// Choice is how the backend of a new connection is chosen, where no session decides it.
	Choice string `json:"choice,omitempty"`
	// Backends lists some of the backends, or says why there are none.
	Backends string `json:"backends"`
}

func (f *Frontend) cells() []string {
	return []string{f.Service, f.Port, f.Frontend, f.Protocol, f.Policy, f.Affinity, f.Choice, f.Backends}
}

// Problem is something wrong with an object of the cluster.
type Problem struct {
	Severity string `json:"severity"` // "error" or "warning"
	// Text is a sentence for people that begins with the object's name.
	Text string `json:"text"`
}

// DescriptorShare says how much of one thing that takes descriptors the agent may have.
type DescriptorShare struct {
	For  string `json:"for"`
	Most int    `json:"most"`
}

// counterCells shows a Counter on one line. Of several values it shows those that are not zero.
func counterCells(c *counter.Counter) []string {
	var values []string
	for _, v := range c.Values {
		text := strconv.FormatFloat(v.N, 'f', -1, 64)
		if c.Kind == counter.Distribution {
			text = fmt.Sprintf("%d, together %s", v.Count, text)
		}
		switch {
		case len(v.Labels) == 0:
			values = append(values, text)
		case v.N != 0 || v.Count != 0:
			values = append(values, strings.Join(v.Labels, "/")+"="+text)
		}
	}
	if len(values) == 0 {
		values = []string{"none"}
	}
	return []string{c.Name, strings.Join(values, " "), c.Help}
}

func ago(d time.Duration) string {
	if d < 0 {
		return "never"
	}
	return d.Truncate(time.Second).String() + " ago"
}

// size returns a number of bytes as people read it.
func size(n uint64) string {
	units := []string{"kB", "MB", "GB", "TB"}
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	f := float64(n) / 1000
	for len(units) > 1 && f >= 1000 {
		f, units = f/1000, slices.Delete(units, 0, 1)
	}
	return fmt.Sprintf("%.1f %s", f, units[0])
}

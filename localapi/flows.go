package localapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Flow is one event of a flow, with the names of who was at its ends. Fields that say nothing of an event are zero.
type Flow struct {
	Time time.Time `json:"time"`
	Node string    `json:"node"`
	// Event is what happened: begun, ended, refused (its sender was told), dropped (its sender was not told), resolved
	// (cluster DNS answered), and later served (Ingress did).
	Event   string  `json:"event"`
	Verdict Verdict `json:"verdict"`
	// Reason is why it was refused or dropped, as tapestry_drops_total has it. Policy says which rule decided.
	Reason string `json:"reason,omitempty"`
	Policy string `json:"policy,omitempty"`
	// Protocol is "tcp", "udp", "sctp", "icmp", "icmpv6" or a number.
	Protocol string `json:"protocol"`
	// Source began the flow. Destination is where its packets arrive, after translation.
	Source      FlowEnd `json:"source"`
	Destination FlowEnd `json:"destination"`
	// Frontend is the destination before translation, and Service the Service port that it belongs to; both are zero
	// without translation. As is the source after translation, if that is another one.
	Frontend netip.AddrPort `json:"frontend,omitzero"`
	Service  string         `json:"service,omitempty"` // "namespace/name"
	As       netip.AddrPort `json:"as,omitzero"`
	// Via is the node through which a client outside came in, if it is another one.
	Via string `json:"via,omitempty"`
	// What was sent by the source, and by the destination, in bytes of IP, up to the end of the flow.
	SentBytes       uint64 `json:"sentBytes,omitempty"`
	SentPackets     uint64 `json:"sentPackets,omitempty"`
	ReceivedBytes   uint64 `json:"receivedBytes,omitempty"`
	ReceivedPackets uint64 `json:"receivedPackets,omitempty"`
	// Duration is how long the flow lasted, and State how it ended, as flow.State. AnswerTime is the time to the first
	// answer: SYN to SYN-ACK, question to answer; 0 if it was not seen.
	Duration   time.Duration `json:"duration,omitempty"`
	State      string        `json:"state,omitempty"`
	AnswerTime time.Duration `json:"answerTime,omitempty"`
	// Retransmits counts segments that were sent again, as far as they were seen.
	Retransmits uint32 `json:"retransmits,omitempty"`
	// Relayed is set for what is seen at a host socket, before it is a flow of pods. Earlier: it began before this
	// agent.
	Relayed bool `json:"relayed,omitempty"`
	Earlier bool `json:"earlier,omitempty"`
	// DNS is what cluster DNS was asked and has answered.
	DNS *FlowDNS `json:"dns,omitempty"`
}

// Verdict is whether a flow may be.
type Verdict string

// The verdicts.
const (
	Forwarded Verdict = "forwarded"
	Lost      Verdict = "dropped"
	Audited   Verdict = "audit" // forwarded, but a staged policy would have dropped it; no agent says it yet
)

// FlowEnd is who was at an end of a flow.
type FlowEnd struct {
	Address netip.Addr `json:"address"`
	Port    uint16     `json:"port,omitempty"` // the identifier of an ICMP echo
	// Kind is "pod", "node", "agent" (the node's own DNS and Ingress), "outside" or "nobody"; "" if it is not known.
	Kind string `json:"kind,omitempty"`
	// Namespace and Pod are those of a pod. Node is the pod's node, or the node itself.
	Namespace string            `json:"namespace,omitempty"`
	Pod       string            `json:"pod,omitempty"`
	Node      string            `json:"node,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
}

// FlowDNS is a question to cluster DNS and its answer. Name may be cut off; then it ends with an ellipsis.
type FlowDNS struct {
	Name    string `json:"name"`
	Type    string `json:"type"`
	Code    string `json:"code"`
	Answers uint16 `json:"answers"`
}

// FlowQuery says which events are asked for: the last ones that the Filter admits, at most Last of them, and with
// Follow those that come.
type FlowQuery struct {
	Last   int        `json:"last,omitempty"`
	Follow bool       `json:"follow,omitempty"`
	Filter FlowFilter `json:"filter,omitzero"`
}

// FlowFilter admits a Flow that has one value of every list that is not empty.
type FlowFilter struct {
	// Pods are "namespace/name" or "name", at either end; a name stands for all that begin so.
	Pods       []string `json:"pods,omitempty"`
	Namespaces []string `json:"namespaces,omitempty"` // of a pod at either end, or of the Service
	Services   []string `json:"services,omitempty"`   // "namespace/name" or "name"
	Events     []string `json:"events,omitempty"`
	Verdicts   []string `json:"verdicts,omitempty"`
	Reasons    []string `json:"reasons,omitempty"`
	Protocols  []string `json:"protocols,omitempty"`
	// Ports are of either end, or of the frontend.
	Ports []uint16 `json:"ports,omitempty"`
	// Names are names that DNS was asked for, and "*.example.com" for all below one.
	Names []string `json:"names,omitempty"`
	// Addresses hold an address of either end, or of the frontend.
	Addresses []netip.Prefix `json:"addresses,omitempty"`
}

// Match reports whether the filter admits an event.
func (f *FlowFilter) Match(e *Flow) bool {
	ends := [...]*FlowEnd{&e.Source, &e.Destination}
	namespace, _, _ := strings.Cut(e.Service, "/")
	return one(f.Pods, func(want string) bool {
		return ends[0].isPod(want) || ends[1].isPod(want)
	}) && one(f.Namespaces, func(want string) bool {
		return want == ends[0].Namespace || want == ends[1].Namespace || want == namespace && e.Service != ""
	}) && one(f.Services, func(want string) bool {
		return e.Service != "" && (want == e.Service || namespace+"/"+want == e.Service)
	}) && one(f.Events, func(want string) bool { return want == e.Event }) &&
		one(f.Verdicts, func(want string) bool { return Verdict(want) == e.Verdict }) &&
		one(f.Reasons, func(want string) bool { return want == e.Reason }) &&
		one(f.Protocols, func(want string) bool { return strings.EqualFold(want, e.Protocol) }) &&
		one(f.Ports, func(want uint16) bool {
			return want == ends[0].Port || want == ends[1].Port || want == e.Frontend.Port() && want != 0
		}) &&
		one(f.Names, func(want string) bool { return e.DNS != nil && isName(want, e.DNS.Name) }) &&
		one(f.Addresses, func(want netip.Prefix) bool {
			return want.Contains(ends[0].Address) || want.Contains(ends[1].Address) || want.Contains(e.Frontend.Addr())
		})
}

// one reports whether a list has nothing to say, or one of its values is right.
func one[T any](list []T, right func(T) bool) bool {
	return len(list) == 0 || slices.ContainsFunc(list, right)
}

func (e *FlowEnd) isPod(want string) bool {
	if e.Pod == "" {
		return false
	}
	if namespace, name, ok := strings.Cut(want, "/"); ok {
		return namespace == e.Namespace && strings.HasPrefix(e.Pod, name)
	}
	return strings.HasPrefix(e.Pod, want)
}

// isName compares names of DNS: case and a last dot do not count.
func isName(want, name string) bool {
	want, name = strings.ToLower(strings.TrimSuffix(want, ".")), strings.ToLower(strings.TrimSuffix(name, "."))
	if below, ok := strings.CutPrefix(want, "*"); ok {
		return strings.HasSuffix(name, below) && len(name) > len(below)
	}
	return want == name
}

// FlowReader brings the events of a FlowQuery; *recall.Reader is one.
type FlowReader interface {
	// Wait returns the next event. It returns false when ctx ends, and when there is none and the query does not
	// follow.
	Wait(ctx context.Context) (Flow, bool)
	// Next is Wait without waiting.
	Next() (Flow, bool)
	// Lost returns how many events were overwritten before they could be read.
	Lost() uint64
	// Follows reports whether more events may come after Next has returned false.
	Follows() bool
}

// patience is how long a client that follows waits for an answer, which has no events if none came.
const patience = time.Second

// flows answers a request for events with as many as are there and fit a message.
func flows(ctx context.Context, r FlowReader) (answer, error) {
	a := answer{More: true}
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	size := 0
	for f, ok := r.Wait(within); ; f, ok = r.Next() {
		if !ok {
			a.More = r.Follows()
			break
		}
		row, err := json.Marshal(&f)
		if err != nil {
			return answer{}, fmt.Errorf("an event of a flow: %w", err)
		}
		a.Rows = append(a.Rows, row)
		if size += len(row) + len(","); size > pageSize/2 { // one more fits all the same
			break
		}
	}
	a.Lost = r.Lost()
	return a, nil
}

// Flows asks for events of flows, and calls each for every one, in order. lost is how many events the agent has had to
// leave out so far. It returns when there are no more, ctx ends or each returns an error.
func (c *Client) Flows(ctx context.Context, q FlowQuery, each func(f *Flow, lost uint64) error) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	for r := (request{Op: opFlows, Flows: &q}); ; r = (request{Op: opFlows}) {
		a, err := exchange(ctx, conn, r)
		if err != nil {
			return err
		}
		for _, row := range a.Rows {
			var f Flow
			if err := json.Unmarshal(row, &f); err != nil {
				return fmt.Errorf("an event of the agent is none: %w", err)
			}
			if err := each(&f, a.Lost); err != nil {
				return err
			}
		}
		if !a.More {
			return nil
		}
	}
}

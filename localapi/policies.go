package localapi

import (
	"net/netip"
	"strconv"
	"time"
)

// Policy is a NetworkPolicy or ClusterNetworkPolicy that a node judges by.
type Policy struct {
	Policy string `json:"policy"` // as "NetworkPolicy shop/web"
	Mode   string `json:"mode"`   // "enforce" or "audit"
	// Pods is how many pods of this node it selects.
	Pods int `json:"pods"`
	// Generation is that of the node's policies, which changes with each of them and with pods. Since is the one in
	// which the policy, as it is, was there first.
	Generation uint64 `json:"generation"`
	Since      uint64 `json:"since"`
	// Permitted and Denied count flows that began about which it has decided, or would have.
	Permitted uint64 `json:"permitted"`
	Denied    uint64 `json:"denied"`
	// Problems is how many problems it has.
	Problems int `json:"problems,omitempty"`
}

func (p *Policy) cells() []string {
	return []string{
		p.Policy, p.Mode, strconv.Itoa(p.Pods), strconv.FormatUint(p.Since, 10),
		strconv.FormatUint(p.Permitted, 10), strconv.FormatUint(p.Denied, 10), strconv.Itoa(p.Problems),
	}
}

// Explanation is why a flow may be, or may not.
type Explanation struct {
	From Explained `json:"from"`
	To   Explained `json:"to"`
	// Verdict is "permitted", "denied" (its sender is told), "dropped" or "not decided yet".
	Verdict string `json:"verdict"`
	// Would is the verdict if the staged policies were enforced; "" if there are none.
	Would string `json:"would,omitempty"`
}

// Explained is one end of a flow.
type Explained struct {
	End  string     `json:"end"` // as it was asked for
	Addr netip.Addr `json:"addr"`
	// Pod is the pod that is judged there, and Node its node; "" for none.
	Pod  string `json:"pod,omitempty"`
	Node string `json:"node,omitempty"`
	// Now is how the end is judged, and Staged how it would be.
	Now    Judged  `json:"now"`
	Staged *Judged `json:"staged,omitempty"`
}

// Judged is how one end of a flow is judged.
type Judged struct {
	Verdict string `json:"verdict"`
	// Policies are those that select the pod for the direction, and Rule the one that decides; "" for none.
	Policies []string `json:"policies,omitempty"`
	Rule     string   `json:"rule,omitempty"`
	// Change says what would have to change for the flow to be permitted; "" if it is.
	Change string `json:"change,omitempty"`
}

// StagedFlow is flows between two ends to one port that would fare otherwise if the staged policies were in force.
type StagedFlow struct {
	// From and To are names of this node's pods, "namespace/name"; "" for whoever else has the address.
	From     string     `json:"from,omitempty"`
	To       string     `json:"to,omitempty"`
	Src      netip.Addr `json:"src"`
	Dst      netip.Addr `json:"dst"`
	Protocol string     `json:"protocol"`
	Port     uint16     `json:"port,omitempty"` // of TCP, UDP and SCTP
	// Would is "permitted" for flows that are denied, or "denied" for ones that are permitted.
	Would string `json:"would"`
	// By is the rule that would decide, as "NetworkPolicy shop/web ingress[0]"; "" for none.
	By string `json:"by,omitempty"`
	// Begun counts flows that began, Standing how often one that stood was judged again.
	Begun    uint64    `json:"begun"`
	Standing uint64    `json:"standing"`
	First    time.Time `json:"first"`
	Last     time.Time `json:"last"`
}

func (f *StagedFlow) cells() []string {
	end := func(name string, a netip.Addr) string {
		if name != "" {
			return name
		}
		return a.String()
	}
	to := end(f.To, f.Dst) + "/" + f.Protocol
	if f.Port != 0 {
		to = end(f.To, f.Dst) + ":" + strconv.Itoa(int(f.Port)) + "/" + f.Protocol
	}
	by := f.By
	if by == "" {
		by = "no rule"
	}
	return []string{end(f.From, f.Src), to, f.Would, by, strconv.FormatUint(f.Begun, 10), strconv.FormatUint(f.Standing, 10), since(f.Last) + " ago"}
}

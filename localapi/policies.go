package localapi

import (
	"net/netip"
	"strconv"
	"time"
)

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

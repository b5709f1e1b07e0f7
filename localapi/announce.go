package localapi

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"tapestry.dev/tapestry/announce"
)

// The tables about what is announced to the network outside. Announcers ask for LinkState or RouteState several times a
// second, and for the others when that has changed.
var (
	LinkState = Table[announce.State]{"l2-state", "changes when whose turn it is to announce by ARP and NDP does", []string{"GENERATION"}, stateCells}
	Turns     = Table[announce.Turn]{
		"l2", "addresses that are announced by ARP and NDP, and by which node",
		[]string{"ADDRESS", "OF", "ANNOUNCER", "SILENT"}, turnCells,
	}
	Claims = Table[announce.Claim]{
		"l2-claims", "what the announcer of this node does about addresses, by ARP and NDP",
		[]string{"ADDRESS", "INTERFACE", "STATE", "FOR", "PROBLEM"}, claimCells,
	}
	RouteState = Table[announce.State]{"bgp-state", "changes when what is announced by BGP does", []string{"GENERATION"}, stateCells}
	BGPPeers   = Table[announce.Peer]{
		"bgp-peers", "routers with which this node has BGP sessions",
		[]string{"PEER", "ADDRESS", "ASN", "MY ASN"}, func(p *announce.Peer) []string {
			return []string{p.Name, p.Address.String(), fmt.Sprint(p.ASN), fmt.Sprint(p.MyASN)}
		},
	}
	Routes = Table[announce.Route]{
		"bgp", "what this node tells routers by BGP",
		[]string{"PREFIX", "PEER", "SERVICES", "COMMUNITIES", "LOCAL PREFERENCE"}, routeCells,
	}
	Sessions = Table[announce.Session]{
		"bgp-sessions", "the BGP sessions of this node, as its announcer sees them",
		[]string{"PEER", "ADDRESS", "ASN", "STATE", "FOR", "BFD", "ROUTES", "RECEIVED", "PROBLEM"}, sessionCells,
	}
)

func stateCells(s *announce.State) []string { return []string{strconv.FormatUint(s.Generation, 10)} }

func turnCells(t *announce.Turn) []string {
	by := t.Announcer
	if by == "" {
		by = "nobody"
	}
	of := strings.Join(t.Services, ",")
	if t.Egress != "" {
		of = "EgressAddress " + t.Egress
	}
	silent := slices.Clone(t.Silent)
	for i, n := range silent {
		if slices.Contains(t.Resting, n) {
			silent[i] += " (rests)"
		}
	}
	return []string{t.Addr.String(), of, by, strings.Join(silent, ",")}
}

func claimCells(c *announce.Claim) []string {
	return []string{c.Addr.String(), c.Interface, string(c.State), since(c.Since), c.Problem}
}

func routeCells(r *announce.Route) []string {
	pref := ""
	if r.LocalPref != nil {
		pref = fmt.Sprint(*r.LocalPref)
	}
	return []string{r.Prefix.String(), r.Peer, strings.Join(r.Services, ","), strings.Join(r.Communities, ","), pref}
}

func sessionCells(s *announce.Session) []string {
	return []string{s.Peer, s.Address.String(), fmt.Sprint(s.ASN), s.State, since(s.Since), s.BFD, strconv.Itoa(s.Routes), strconv.Itoa(s.Received), s.Problem}
}

func since(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return time.Since(t).Truncate(time.Second).String()
}

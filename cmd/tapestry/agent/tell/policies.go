package tell

import (
	"context"
	"strconv"

	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy"
)

// stagedRows returns what staged policies find.
func (t *Teller) stagedRows(context.Context) (rows []localapi.StagedFlow, _ error) {
	if !t.o.Follower.HasStarted() {
		return nil, nil
	}
	tables, findings := t.o.Follower.Node().Policies()
	for _, f := range findings.List(tables) {
		row := localapi.StagedFlow{
			From: f.From.Name, To: f.Toward.Name, Src: f.Src.Netip(), Dst: f.Dst.Netip(), Protocol: protocol(f.Proto), Port: f.Port,
			Would: "denied", Begun: f.Begun, Standing: f.Standing, First: f.First, Last: f.Last,
		}
		if f.Would == policy.Permit {
			row.Would = "permitted"
		}
		if f.Rule != 0 {
			row.By = f.By.String() + " " + f.Rule.String()
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// protocol returns the name of a protocol.
func protocol(p packet.Proto) string {
	switch p {
	case packet.TCP:
		return "TCP"
	case packet.UDP:
		return "UDP"
	case packet.SCTP:
		return "SCTP"
	case packet.ICMPv4, packet.ICMPv6:
		return "ICMP"
	}
	return "protocol " + strconv.Itoa(int(p))
}

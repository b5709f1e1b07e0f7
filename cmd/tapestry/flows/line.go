package flows

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"tapestry.dev/tapestry/localapi"
)

// line shows an event to people:
//
//	01:04:13.123 begun    tcp shop/web:41002 -> Service shop/db 10.96.0.7:5432 -> shop/db-0:5432, by NetworkPolicy shop/db ingress[0]
func line(f *localapi.Flow) string {
	what := " -> " + frontend(f) + end(&f.Destination)
	if f.DNS != nil {
		what = fmt.Sprintf(": %s %s -> %s", f.DNS.Type, f.DNS.Name, f.DNS.Code)
		if f.DNS.Answers > 0 {
			what += fmt.Sprintf(", %d records", f.DNS.Answers)
		}
	}
	who := fmt.Sprintf("%s %-8s %s %s", f.Time.Format("15:04:05.000"), f.Event, f.Protocol, end(&f.Source))
	return strings.Join(append([]string{who + what}, details(f)...), ", ")
}

// frontend shows where a client asked, if that is not where its packets arrive.
func frontend(f *localapi.Flow) string {
	switch {
	case f.Service != "" && f.Frontend.IsValid():
		return fmt.Sprintf("Service %s %s -> ", f.Service, f.Frontend)
	case f.Service != "":
		return fmt.Sprintf("Service %s ", f.Service)
	case f.Frontend.IsValid():
		return f.Frontend.String() + " -> "
	}
	return ""
}

func end(e *localapi.FlowEnd) string {
	at := netip.AddrPortFrom(e.Address, e.Port).String()
	port := strconv.Itoa(int(e.Port))
	switch {
	case e.Pod != "":
		return e.Namespace + "/" + net.JoinHostPort(e.Pod, port)
	case e.Kind == "node" && e.Node != "":
		return "node " + net.JoinHostPort(e.Node, port)
	case e.Kind == "":
		return at
	}
	return e.Kind + " " + at
}

// details lists what else is known.
func details(f *localapi.Flow) (list []string) {
	add := func(is bool, format string, args ...any) {
		if is {
			list = append(list, fmt.Sprintf(format, args...))
		}
	}
	add(f.Reason != "", "%s", f.Reason)
	add(f.Policy != "", "by %s", f.Policy)
	add(f.Verdict == localapi.Audited, "a staged policy would refuse it")
	add(f.As.IsValid(), "as %s", f.As)
	add(f.Via != "", "via node %s", f.Via)
	add(f.State != "", "%s", f.State)
	add(f.Event == "ended" && !f.Relayed, "sent %d B in %d packets, received %d B in %d", f.SentBytes, f.SentPackets, f.ReceivedBytes, f.ReceivedPackets)
	add(f.AnswerTime > 0, "answered after %s", f.AnswerTime)
	add(f.Retransmits > 0, "%d sent again", f.Retransmits)
	add(f.Duration > 0, "lasted %s", f.Duration.Round(time.Millisecond))
	add(f.Earlier, "began before this agent")
	add(f.Relayed, "by a host socket")
	return list
}

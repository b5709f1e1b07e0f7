package dns

import (
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/miekg/dns"
)

// Answered is a question that was answered, for whoever records that.
type Answered struct {
	Client netip.AddrPort
	TCP    bool
	// Name and Type are what was asked. Rcode and Records, the number of records in its answer section, are of the
	// answer.
	Name    string
	Type    uint16
	Rcode   int
	Records int
	Took    time.Duration
}

// tell tells Options.Answered of an answer to a question.
func (s *Server) tell(client netip.AddrPort, tcp bool, r, m *dns.Msg, took time.Duration) {
	if s.opts.Answered == nil || len(r.Question) != 1 {
		return
	}
	q := &r.Question[0]
	s.opts.Answered(&Answered{Client: client, TCP: tcp, Name: q.Name, Type: q.Qtype, Rcode: m.Rcode, Records: len(m.Answer), Took: took})
}

// addrPortOf returns the address, which is known already, and the port of a client.
func addrPortOf(from net.Addr, client netip.Addr) netip.AddrPort {
	at, ok := from.(interface{ AddrPort() netip.AddrPort })
	if !ok {
		return netip.AddrPortFrom(client, 0)
	}
	return netip.AddrPortFrom(client, at.AddrPort().Port())
}

// TypeName returns the name of a type of records, as "AAAA", or "TYPE65280" (RFC 3597 5).
func TypeName(t uint16) string { return dns.Type(t).String() }

// CodeName returns the name of an answer's code, as "NXDOMAIN".
func CodeName(code uint16) string {
	if name, ok := dns.RcodeToString[int(code)]; ok {
		return name
	}
	return strconv.Itoa(int(code))
}

package underlay

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"github.com/miekg/dns"
)

// The resolver outside of the cluster knows only the name outsideDomain, which has the outside's addresses. It does not
// answer questions below silentDomain, like a zone whose servers do not answer.
const (
	outsideDomain = "outside.example."
	silentDomain  = "silent.example."
)

// ServeDNS answers at Resolvers until ctx is done.
func (u *Underlay) ServeDNS(ctx context.Context, log *slog.Logger) error {
	ns := u.Namespace(Outside)
	for _, a := range resolverAddrs {
		addr := netip.AddrPortFrom(a, 53).String()
		udp, tcp := &dns.Server{Handler: dns.HandlerFunc(answerDNS)}, &dns.Server{Handler: dns.HandlerFunc(answerDNS)}
		err := ns.Do(func() (err error) {
			if udp.PacketConn, err = net.ListenPacket("udp", addr); err != nil {
				return err
			}
			tcp.Listener, err = net.Listen("tcp", addr)
			return err
		})
		if err != nil {
			return fmt.Errorf("listen on %s: %w", addr, err)
		}
		for _, s := range []*dns.Server{udp, tcp} {
			context.AfterFunc(ctx, func() { _ = s.Shutdown() })
			go func() {
				if err := s.ActivateAndServe(); err != nil && ctx.Err() == nil {
					log.Error("the outside's DNS has ended", "addr", addr, "err", err)
				}
			}()
		}
	}
	return nil
}

func answerDNS(w dns.ResponseWriter, query *dns.Msg) {
	reply := new(dns.Msg).SetReply(query)
	reply.Authoritative = true
	if len(query.Question) != 1 {
		reply.Rcode = dns.RcodeFormatError
		_ = w.WriteMsg(reply)
		return
	}
	q := query.Question[0]
	if dns.IsSubDomain(silentDomain, q.Name) {
		return
	}
	if dns.CanonicalName(q.Name) != outsideDomain {
		reply.Rcode = dns.RcodeNameError
	}
	for _, a := range externalAddrs {
		head := dns.RR_Header{Name: q.Name, Class: dns.ClassINET, Ttl: 5, Rrtype: q.Qtype}
		switch {
		case reply.Rcode != dns.RcodeSuccess:
		case q.Qtype == dns.TypeA && a.Is4():
			reply.Answer = append(reply.Answer, &dns.A{Hdr: head, A: a.AsSlice()})
		case q.Qtype == dns.TypeAAAA && a.Is6():
			reply.Answer = append(reply.Answer, &dns.AAAA{Hdr: head, AAAA: a.AsSlice()})
		}
	}
	_ = w.WriteMsg(reply) // the client asks again
}

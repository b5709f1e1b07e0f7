package dns

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/miekg/dns"
)

// Probe asks the server at the other end of conn, over UDP, for the version of the zone, which a Server always knows,
// and reports what is wrong with the answer. An empty zone is cluster.local. It returns when ctx ends; conn is of no
// more use then.
func Probe(ctx context.Context, conn net.Conn, zone string) error {
	if zone == "" {
		zone = "cluster.local"
	}
	ask := new(dns.Msg).SetQuestion("dns-version."+dns.CanonicalName(zone), dns.TypeTXT)
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	got, _, err := new(dns.Client).ExchangeWithConnContext(ctx, ask, &dns.Conn{Conn: conn})
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("ask %s for %s: %w", conn.RemoteAddr(), ask.Question[0].Name, err)
	}
	if got.Rcode != dns.RcodeSuccess || len(got.Answer) != 1 {
		return fmt.Errorf("ask %s for %s: expected one record, got %s with %d: is another DNS server there?",
			conn.RemoteAddr(), ask.Question[0].Name, dns.RcodeToString[got.Rcode], len(got.Answer))
	}
	return nil
}

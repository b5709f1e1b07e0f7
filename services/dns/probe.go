package dns

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/miekg/dns"
)

// Probe asks the server at the other end of conn, over UDP, for the version of the zone, and returns an error if the
// answer is wrong. A Server knows the version as soon as it has a Config. An empty zone means cluster.local. Probe
// returns when ctx ends; conn cannot be used after that.
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
		return fmt.Errorf("ask %s for %s: expected one record, got %s with %d; check that no other DNS server is there",
			conn.RemoteAddr(), ask.Question[0].Name, dns.RcodeToString[got.Rcode], len(got.Answer))
	}
	return nil
}

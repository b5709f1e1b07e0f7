package ingress

import "sync/atomic"

// Stats are counters since New; InFlight and Conns are the numbers at this moment.
type Stats struct {
	Requests uint64
	InFlight int64 // requests and upgraded connections at this moment
	// Responses counts responses of backends by class: [2] counts 200 to 299. [0] is not used.
	Responses   [6]uint64
	BadRequest  uint64 // answered 400 for their target, method or host
	NoRoute     uint64 // answered 404
	Looped      uint64 // answered 508
	NoEndpoint  uint64 // answered 503
	Forbidden   uint64 // answered 403: the client may reach none of the endpoints
	BadGateway  uint64 // answered 502
	Timeout     uint64 // answered 504
	ClientGone  uint64 // the client left before the backend answered
	ClientBroke uint64 // the client's body was broken off, or stalled, before the backend answered
	Broken      uint64 // responses that were cut: the backend or the client broke off, or the client stalled
	Retries     uint64 // requests passed on to another endpoint: the dial failed, or a harmless one got no answer
	// FallbackTLS counts handshakes with the self-signed certificate.
	FallbackTLS uint64
	// Cut counts requests and upgraded connections that were still under way when Shutdown ran out of time.
	Cut uint64

	// Conns is how many connections clients have at this moment.
	Conns int64
	// Evicted counts connections, and Shed requests, that were ended in favour of clients with fewer. Refused counts
	// connections and requests for which there was no place. Flooded counts connections that were ended because the
	// client cancelled many of its HTTP/2 requests at once. Waited counts connections that were begun later, or never,
	// since their client had many.
	Evicted, Shed, Refused, Flooded, Waited uint64
}

// Stats returns the counters. They are read one by one, so they may not add up exactly.
func (s *Server) Stats() Stats {
	c := &s.stats
	sum := Stats{
		Requests: c.requests.Load(), InFlight: c.inFlight.Load(), BadRequest: c.badRequest.Load(),
		NoRoute: c.noRoute.Load(), Looped: c.looped.Load(), NoEndpoint: c.noEndpoint.Load(), Forbidden: c.forbidden.Load(), BadGateway: c.badGateway.Load(),
		Timeout: c.timeout.Load(), ClientGone: c.clientGone.Load(), ClientBroke: c.clientBroke.Load(), Broken: c.broken.Load(),
		Retries: c.retries.Load(), FallbackTLS: c.fallbackTLS.Load(), Cut: c.cut.Load(),
		Conns:   int64(s.guests.limit.Stats().Held),
		Evicted: c.evicted.Load(), Shed: c.shed.Load(), Refused: c.refused.Load(), Flooded: c.flooded.Load(), Waited: c.waited.Load(),
	}
	for i := range sum.Responses {
		sum.Responses[i] = c.responses[i].Load()
	}
	return sum
}

type counters struct {
	inFlight                                              atomic.Int64
	requests, badRequest, noRoute, noEndpoint, badGateway atomic.Uint64
	timeout, clientGone, clientBroke, broken, retries     atomic.Uint64
	fallbackTLS, cut, evicted, shed, refused, flooded     atomic.Uint64
	looped, waited, forbidden                             atomic.Uint64
	responses                                             [6]atomic.Uint64
}

func (c *counters) class(status int) {
	if i := status / 100; 0 < i && i < len(c.responses) {
		c.responses[i].Add(1)
	}
}

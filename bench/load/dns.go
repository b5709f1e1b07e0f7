package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"time"

	"github.com/miekg/dns"

	"tapestry.dev/tapestry/bench/load/pace"
)

// dnsTries is how often a query is sent before the name server counts as gone.
const dnsTries = 5

// DNSQueries asks a name server for Name over UDP, one query at a time on each of Streams sockets. A query without an
// answer within 500 ms is sent again, up to 5 times, and counts as lost each time. The time of a transaction is that of
// all its tries. Every answer must have a record of the type asked for.
func DNSQueries(ctx context.Context, addr string, o Options) (Result, error) {
	o, err := o.Complete()
	if err != nil {
		return Result{}, err
	}
	if _, ok := dns.IsDomainName(o.Name); !ok || o.Name == "" {
		return Result{}, fmt.Errorf("load: DNS: name %q: expected a domain name to ask for", o.Name)
	}
	conns := make([]net.Conn, 0, o.Streams)
	defer func() { closeAll(conns) }()
	for range o.Streams {
		c, err := new(net.Dialer).DialContext(ctx, "udp", addr)
		if err != nil {
			return Result{}, fmt.Errorf("load: DNS: %w", err)
		}
		conns = append(conns, c)
	}
	loop := pace.Start(o.Time, o.Rate)
	lost := make([]uint64, o.Streams)
	err = together(ctx, conns, func(ctx context.Context, i int, c net.Conn) error {
		r, err := newResolver(c, o, loop.Cutoff)
		if err != nil {
			return err
		}
		err = loop.Stream(ctx, r.resolve)
		lost[i] = r.lost
		return err
	})
	if err != nil {
		return Result{}, fmt.Errorf("load: DNS: %w", err)
	}
	r, err := transactions("dns", o, loop.Tally())
	for _, n := range lost {
		r.Lost += n
	}
	return r, err
}

// resolver is one socket's client.
type resolver struct {
	c        net.Conn
	query    []byte // packed once; only its ID changes
	question dns.Question
	response []byte
	cutoff   time.Time
	lost     uint64
}

func newResolver(c net.Conn, o Options, cutoff time.Time) (*resolver, error) {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(o.Name), dns.StringToType[o.QueryType])
	query, err := m.Pack()
	if err != nil {
		return nil, err
	}
	return &resolver{c: c, query: query, question: m.Question[0], response: make([]byte, dns.DefaultMsgSize), cutoff: cutoff}, nil
}

// resolve does one transaction.
func (r *resolver) resolve() error {
	for range dnsTries {
		err := r.try()
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		r.lost++
		if !time.Now().Before(r.cutoff) {
			return pace.ErrUnanswered
		}
	}
	return fmt.Errorf("no answer to %d queries within %v each", dnsTries, lossTimeout)
}

// try sends the query once. It ignores answers to earlier tries.
func (r *resolver) try() error {
	id := uint16(rand.Uint32())
	r.query[0], r.query[1] = byte(id>>8), byte(id)
	deadline := time.Now().Add(lossTimeout)
	if deadline.After(r.cutoff) {
		deadline = r.cutoff
	}
	if err := r.c.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := r.c.Write(r.query); err != nil {
		return err
	}
	for {
		n, err := r.c.Read(r.response)
		if err != nil {
			return err
		}
		if n >= 2 && r.response[0] == r.query[0] && r.response[1] == r.query[1] {
			return r.check(r.response[:n])
		}
	}
}

// check returns an error that says what is wrong with an answer.
func (r *resolver) check(b []byte) error {
	var m dns.Msg
	if err := m.Unpack(b); err != nil {
		return fmt.Errorf("read the answer for %s: %w", r.question.Name, err)
	}
	switch {
	case m.Rcode != dns.RcodeSuccess:
		return fmt.Errorf("asked for %s: got %s, expected an address", r.question.Name, dns.RcodeToString[m.Rcode])
	case !m.Response || len(m.Question) != 1 || m.Question[0] != r.question:
		return fmt.Errorf("asked for %s: got an answer to something else", r.question.Name)
	}
	for _, record := range m.Answer {
		if record.Header().Rrtype == r.question.Qtype {
			return nil
		}
	}
	return fmt.Errorf("asked for %s: got no %s record", r.question.Name, dns.TypeToString[r.question.Qtype])
}

package forward

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

const (
	// wrongMax is how many wrong answers may come before an upstream is asked over TCP, where nobody can forge one
	// without seeing the connection. Each is one more guess.
	wrongMax = 8
	// answerMax is the largest UDP answer that is read, in bytes; upstreams are told to send no more than UDPSize.
	answerMax = 4096
	// caseRetry is how long an upstream that does not keep the spelling of a name is not sent mixed ones.
	caseRetry = time.Hour
)

// way is a question and the transport it goes by.
type way struct {
	*question
	tcp bool
}

var (
	errOtherCase = errors.New("the answer has another spelling of the name")
	errForged    = errors.New("too many answers are to other questions")
)

// ask asks one upstream, for no longer than the timeout of one. What it gives is a whole message and an answer to the
// question.
//
// Over UDP it asks from a socket of its own, so that the kernel drops what comes from elsewhere, and the port, the id
// and the spelling of the name are what a forger has to guess (RFC 5452). Whatever leaves a doubt, it asks again over
// TCP: a truncated answer, one in another spelling, and many wrong ones.
func (f *Forwarder) ask(ctx context.Context, u netip.AddrPort, w way) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, f.opts.Timeout)
	defer cancel()
	f.counts.requests.Add(1)
	began := time.Now()
	answer, err := f.askBy(ctx, u, w)
	if err == nil {
		if err = new(dns.Msg).Unpack(answer); err != nil {
			err = fmt.Errorf("the answer of %s cannot be read: %w", u, err)
		}
	}
	if err != nil {
		return nil, err
	}
	f.upstreams.answered(u)
	f.counts.answer(answer, time.Since(began))
	return answer, nil
}

func (f *Forwarder) askBy(ctx context.Context, u netip.AddrPort, w way) ([]byte, error) {
	if w.tcp {
		answer, _, err := f.overTCP(ctx, u, w.question)
		return answer, err
	}
	mixed := f.upstreams.keepsCase(u, time.Now())
	first, err := f.overUDP(ctx, u, w.question, mixed)
	switch {
	case errors.Is(err, errForged):
		answer, _, err := f.overTCP(ctx, u, w.question)
		return answer, err
	case errors.Is(err, errOtherCase):
		answer, kept, err := f.overTCP(ctx, u, w.question)
		if err == nil && kept {
			return answer, nil // the upstream is none of those, so the first answer was not its own
		}
		f.upstreams.losesCase(u, time.Now())
		if err == nil {
			return answer, nil
		}
		return f.overUDP(ctx, u, w.question, false)
	case err == nil && (truncated(first) || len(first) == answerMax):
		if answer, _, err := f.overTCP(ctx, u, w.question); err == nil {
			return answer, nil
		}
	}
	return first, err
}

// overUDP sends one datagram and waits for the answer to it. Others are passed over.
func (f *Forwarder) overUDP(ctx context.Context, u netip.AddrPort, q *question, mixed bool) ([]byte, error) {
	conn, err := f.dial(ctx, "udp", u)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	sent := q.disguise(mixed)
	if _, err := conn.Write(sent); err != nil {
		return nil, err
	}
	buf := make([]byte, answerMax)
	for wrong := 0; wrong < wrongMax; wrong++ {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		got := buf[:n]
		m := check(sent, got, len(q.name))
		if m == fits || m == otherCase && !mixed {
			return got, nil
		}
		if m == bareError {
			return nil, fmt.Errorf("%s says %s, and no more", u, dns.RcodeToString[rcodeOf(got)])
		}
		f.counts.wrong[m-1].Add(1)
		if m == otherCase {
			return nil, errOtherCase
		}
	}
	return nil, errForged
}

// overTCP asks over a connection. kept reports whether the upstream kept the spelling of the name.
func (f *Forwarder) overTCP(ctx context.Context, u netip.AddrPort, q *question) (answer []byte, kept bool, err error) {
	conn, err := f.dial(ctx, "tcp", u)
	if err != nil {
		return nil, false, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	sent := q.disguise(true)
	if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(sent))), sent...)); err != nil {
		return nil, false, err
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, false, err
	}
	answer = make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(conn, answer); err != nil {
		return nil, false, err
	}
	switch m := check(sent, answer, len(q.name)); m {
	case fits, otherCase:
		return answer, m == fits, nil
	}
	return nil, false, fmt.Errorf("the answer of %s is to another question", u)
}

func (f *Forwarder) dial(ctx context.Context, network string, u netip.AddrPort) (net.Conn, error) {
	return f.opts.Dial(ctx, network, u.String())
}

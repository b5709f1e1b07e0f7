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
	// wrongMax is the number of wrong answers after which an upstream is asked over TCP. Each wrong answer may be one
	// guess of a forger. Over TCP nobody can forge an answer without seeing the connection.
	wrongMax = 8
	// answerMax is the size in bytes of the largest UDP answer that is read. Upstreams are told to send at most
	// UDPSize.
	answerMax = 4096
	// caseRetry is how long questions to an upstream that does not keep the spelling of a name are sent in lower case.
	caseRetry = time.Hour
)

// way is a question and its transport.
type way struct {
	*question
	tcp bool
}

var (
	errOtherCase = errors.New("the answer has another spelling of the name")
	errForged    = errors.New("too many answers did not match the question")
)

// ask asks one upstream, for at most Options.Timeout. It returns a complete message that answers the question.
//
// Over UDP it uses a new socket for each question, so that the kernel drops packets from other addresses. A forger
// then has to guess the port, the id and the spelling of the name (RFC 5452). ask asks again over TCP whenever it has
// a doubt: after a truncated answer, after an answer in another spelling, and after many wrong answers.
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
			return answer, nil // the upstream keeps the spelling, so the first answer was forged
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

// overUDP sends one datagram and waits for its answer. It ignores answers that do not match.
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
			return nil, fmt.Errorf("%s answers with the code %s only", u, dns.RcodeToString[rcodeOf(got)])
		}
		f.counts.wrong[m-1].Add(1)
		if m == otherCase {
			return nil, errOtherCase
		}
	}
	return nil, errForged
}

// overTCP asks over a new connection. kept reports whether the upstream kept the spelling of the name.
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

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

// bareCode is the code of an answer that does not repeat the question.
type bareCode int

// Error implements error.
func (c bareCode) Error() string {
	return fmt.Sprintf("the upstream answers with the code %s only", dns.RcodeToString[int(c)])
}

// ask asks one upstream, for at most Options.Timeout. It returns a complete message that answers the question.
//
// Over UDP it uses a new socket for each question, so that the kernel drops packets from other addresses. A forger
// then has to guess the port, the id and the spelling of the name (RFC 5452). ask asks again over TCP whenever it has
// a doubt: after a truncated answer, after an answer in another spelling, after an error without the question, and
// after many wrong answers.
func (f *Forwarder) ask(ctx context.Context, u netip.AddrPort, w way) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, f.opts.Timeout)
	defer cancel()
	f.counts.requests.Add(1)
	began := time.Now()
	answer, err := f.askBy(ctx, u, w)
	if w.edns && knowsNoEDNS(answer, err) {
		var plain *question
		if plain, err = w.withoutEDNS(); err == nil {
			answer, err = f.askBy(ctx, u, way{plain, w.tcp})
		}
	}
	if err != nil {
		return nil, err
	}
	f.upstreams.answered(u)
	f.counts.answer(answer, time.Since(began))
	return answer, nil
}

// knowsNoEDNS reports whether the answer is that of a server that may not know EDNS (RFC 6891 7).
func knowsNoEDNS(answer []byte, err error) bool {
	code := dns.RcodeSuccess
	if bare := bareCode(0); errors.As(err, &bare) {
		code = int(bare)
	} else if err == nil {
		code = rcodeOf(answer)
	}
	return code == dns.RcodeFormatError || code == dns.RcodeNotImplemented
}

func (f *Forwarder) askBy(ctx context.Context, u netip.AddrPort, w way) ([]byte, error) {
	if w.tcp {
		answer, _, err := f.overTCP(ctx, u, w.question)
		return answer, err
	}
	mixed := f.upstreams.keepsCase(u, time.Now())
	first, err := f.overUDP(ctx, u, w.question, mixed)
	switch bare := bareCode(0); {
	case errors.As(err, &bare) && w.edns && knowsNoEDNS(nil, err):
		return nil, err // it is asked without EDNS next
	case errors.Is(err, errForged), errors.As(err, &bare):
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
	case err == nil && truncated(first):
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
		if m == otherCase && !mixed {
			m = fits
		}
		switch {
		case m == bareError:
			return nil, bareCode(rcodeOf(got))
		case m == fits && n == answerMax:
			return beginning(got, len(q.name)), nil
		case m == fits && new(dns.Msg).Unpack(got) != nil:
			m = unreadable
		case m == fits:
			return got, nil
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
	sent := q.disguise(!f.opts.LowerCase)
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
		if err := new(dns.Msg).Unpack(answer); err != nil {
			return nil, false, fmt.Errorf("the answer of %s cannot be read: %w", u, err)
		}
		return answer, m == fits, nil
	case bareError:
		return nil, false, bareCode(rcodeOf(answer))
	}
	return nil, false, fmt.Errorf("the answer of %s is to another question", u)
}

func (f *Forwarder) dial(ctx context.Context, network string, u netip.AddrPort) (net.Conn, error) {
	return f.opts.Dial(ctx, network, u.String())
}

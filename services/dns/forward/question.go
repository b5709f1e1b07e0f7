package forward

import (
	"bytes"
	"crypto/rand"
	"slices"

	"github.com/miekg/dns"
)

const (
	headerLen = 12 // bytes of a message's header (RFC 1035 4.1.1)
	typeLen   = 4  // bytes of a question's type and class
)

// question is a message for an upstream: as the client sent it, but without its id, its spelling of the name, and a
// wish for datagrams that would be fragmented, whose later fragments carry nothing that a forger would have to guess.
type question struct {
	wire []byte // the name is in lower case
	name []byte // of wire: the name that is asked for
}

func newQuestion(r *dns.Msg) (*question, error) {
	m := r.Copy()
	m.Id, m.Compress = 0, false
	if opt := m.IsEdns0(); opt != nil {
		opt.SetUDPSize(min(max(opt.UDPSize(), dns.MinMsgSize), UDPSize))
	}
	wire, err := m.Pack()
	if err != nil {
		return nil, err
	}
	_, end, err := dns.UnpackDomainName(wire, headerLen)
	if err != nil {
		return nil, err
	}
	q := &question{wire, wire[headerLen:end]}
	copy(q.name, lower(q.name))
	return q, nil
}

// key is the same for questions to which one answer can be given. What clients sent besides the name counts, for the
// answer may depend on it.
func (q *question) key(tcp bool) string {
	if tcp {
		return "tcp" + string(q.wire)
	}
	return "udp" + string(q.wire)
}

// disguise gives the bytes to send: with an id that nobody can guess, and when mixed with a spelling of the name that
// nobody can guess either, which servers repeat (draft-vixie-dnsext-dns0x20).
func (q *question) disguise(mixed bool) []byte {
	b := slices.Clone(q.wire)
	var random [2 + 256/8]byte
	rand.Read(random[:]) // it never fails
	copy(b, random[:2])
	if !mixed {
		return b
	}
	for i := range q.name {
		// Lengths of labels are below 64, and so no letters.
		if c := &b[headerLen+i]; 'a' <= *c && *c <= 'z' && random[2+i/8]>>(i%8)&1 == 1 {
			*c &^= 0x20
		}
	}
	return b
}

// mismatch is what is wrong with an answer.
type mismatch uint8

// The mismatches, from nothing on.
const (
	fits          mismatch = iota
	otherId                // or no answer at all
	otherQuestion          // than was sent
	otherCase              // the question, in another spelling
	bareError              // no question, and a code that says why
)

// check holds what came against what was sent.
func check(sent, got []byte, name int) mismatch {
	const response, opcode = 0x80, 0x78
	if len(got) < headerLen || !bytes.Equal(got[:2], sent[:2]) || got[2]&response == 0 || got[2]&opcode != sent[2]&opcode {
		return otherId
	}
	if got[4] == 0 && got[5] == 0 && rcodeOf(got) != dns.RcodeSuccess {
		return bareError // some servers repeat no question when they cannot read it
	}
	end := headerLen + name + typeLen
	if len(got) < end || got[4] != 0 || got[5] != 1 || !bytes.Equal(got[end-typeLen:end], sent[end-typeLen:end]) {
		return otherQuestion
	}
	asked, told := sent[headerLen:end-typeLen], got[headerLen:end-typeLen]
	switch {
	case bytes.Equal(asked, told):
		return fits
	case bytes.Equal(lower(asked), lower(told)):
		return otherCase
	}
	return otherQuestion
}

// lower gives a name's bytes in lower case.
func lower(name []byte) []byte {
	b := slices.Clone(name)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c | 0x20
		}
	}
	return b
}

// truncated reports whether an answer is only the beginning of one.
func truncated(answer []byte) bool { return answer[2]&0x02 != 0 }

// rcodeOf is the code of an answer, without what EDNS adds to it.
func rcodeOf(answer []byte) int { return int(answer[3] & 0xf) }

// answerTo gives r the answer that an upstream gave to the same question in another spelling.
func answerTo(r *dns.Msg, answer []byte) (*dns.Msg, error) {
	sent, _, err := dns.UnpackDomainName(answer, headerLen)
	if err != nil {
		return nil, err
	}
	b := slices.Clone(answer)
	// The names in the answer refer to the question's, so that they have the client's spelling, too.
	if _, err := dns.PackDomainName(r.Question[0].Name, b, headerLen, nil, false); err != nil {
		return nil, err
	}
	m := new(dns.Msg)
	if err := m.Unpack(b); err != nil {
		return nil, err
	}
	respell(m.Answer, sent, r.Question[0].Name)
	respell(m.Ns, sent, r.Question[0].Name)
	m.Id = r.Id
	m.RecursionAvailable = true
	return m, nil
}

// respell gives the records of a name, in the spelling sent, the client's spelling. Servers that do not compress names
// write out the one they were asked in.
func respell(records []dns.RR, sent, name string) {
	for _, rr := range records {
		if h := rr.Header(); h.Name == sent {
			h.Name = name
		}
	}
}

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

// question is a message for an upstream. It is the client's message without its id and its spelling of the name. It
// always asks for datagrams of up to UDPSize, whatever fits the client: the answer is cut for the client. Larger ones
// would be fragmented, and a forger of a later fragment has nothing to guess.
type question struct {
	wire []byte // the name is in lower case
	name []byte // part of wire: the name asked for
	edns bool   // the message has an OPT record
}

func newQuestion(r *dns.Msg) (*question, error) {
	m := r.Copy()
	opt := m.IsEdns0()
	if opt == nil {
		opt = m.SetEdns0(UDPSize, false).IsEdns0()
	}
	opt.SetUDPSize(UDPSize)
	return newWire(m, true)
}

func newWire(m *dns.Msg, edns bool) (*question, error) {
	m.Id, m.Compress = 0, false
	wire, err := m.Pack()
	if err != nil {
		return nil, err
	}
	_, end, err := dns.UnpackDomainName(wire, headerLen)
	if err != nil {
		return nil, err
	}
	q := &question{wire, wire[headerLen:end], edns}
	copy(q.name, lower(q.name))
	return q, nil
}

// withoutEDNS returns the question for servers that do not know EDNS (RFC 6891 7).
func (q *question) withoutEDNS() (*question, error) {
	m := new(dns.Msg)
	if err := m.Unpack(q.wire); err != nil {
		return nil, err
	}
	m.Extra = withoutOPT(m.Extra)
	return newWire(m, false)
}

// withoutOPT returns list without OPT records. It changes list.
func withoutOPT(list []dns.RR) []dns.RR {
	return slices.DeleteFunc(list, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
}

// key returns the same string for questions that share one answer. It covers everything that clients sent besides the
// name, since the answer may depend on it.
func (q *question) key(tcp bool) string {
	if tcp {
		return "tcp" + string(q.wire)
	}
	return "udp" + string(q.wire)
}

// disguise returns the bytes to send, with a random id. If mixed is set, the spelling of the name is random too;
// servers repeat it in the answer (draft-vixie-dnsext-dns0x20).
func (q *question) disguise(mixed bool) []byte {
	b := slices.Clone(q.wire)
	var random [2 + 256/8]byte
	rand.Read(random[:]) // it never fails
	copy(b, random[:2])
	if !mixed {
		return b
	}
	for i := range q.name {
		// The lengths of labels are below 64, so they are never taken for letters.
		if c := &b[headerLen+i]; 'a' <= *c && *c <= 'z' && random[2+i/8]>>(i%8)&1 == 1 {
			*c &^= 0x20
		}
	}
	return b
}

// mismatch says how an answer differs from the question.
type mismatch uint8

// The mismatches. fits means that there is none.
const (
	fits          mismatch = iota
	otherId                // another id, or no answer at all
	otherQuestion          // another question than was sent
	unreadable             // the question, and then no message
	otherCase              // the same question in another spelling
	bareError              // no question, but an error code
)

// check compares a received message with the question that was sent. name is the length of the question's name in
// bytes.
func check(sent, got []byte, name int) mismatch {
	const response, opcode = 0x80, 0x78
	if len(got) < headerLen || !bytes.Equal(got[:2], sent[:2]) || got[2]&response == 0 || got[2]&opcode != sent[2]&opcode {
		return otherId
	}
	if got[4] == 0 && got[5] == 0 && rcodeOf(got) != dns.RcodeSuccess {
		return bareError // some servers do not repeat a question that they cannot read
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

// lower returns a copy of a name in lower case.
func lower(name []byte) []byte {
	b := slices.Clone(name)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c | 0x20
		}
	}
	return b
}

// beginning returns the beginning of an answer, up to the question, as a truncated answer. name is the length of the
// question's name in bytes.
func beginning(answer []byte, name int) []byte {
	b := slices.Clone(answer[:headerLen+name+typeLen])
	clear(b[6:headerLen]) // the numbers of records
	b[2] |= 0x02          // TC
	return b
}

// truncated reports whether an answer has TC set.
func truncated(answer []byte) bool { return answer[2]&0x02 != 0 }

// rcodeOf returns the code in an answer's header, without the part that EDNS adds.
func rcodeOf(answer []byte) int { return int(answer[3] & 0xf) }

// answerTo turns an upstream's answer into the answer to r, which is the same question in another spelling.
func answerTo(r *dns.Msg, answer []byte) (*dns.Msg, error) {
	sent, _, err := dns.UnpackDomainName(answer, headerLen)
	if err != nil {
		return nil, err
	}
	b := slices.Clone(answer)
	// Compressed names in the answer refer to the question's name, so they get the client's spelling too.
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
	// EDNS is between two hops (RFC 6891 7).
	if r.IsEdns0() == nil {
		m.Extra = withoutOPT(m.Extra)
	} else if opt := m.IsEdns0(); opt != nil {
		opt.SetUDPSize(UDPSize)
	}
	return m, nil
}

// respell replaces the spelling sent by the client's spelling in the records of that name. This is needed for servers
// that do not compress names and write out the spelling that they received.
func respell(records []dns.RR, sent, name string) {
	for _, rr := range records {
		if h := rr.Header(); h.Name == sent {
			h.Name = name
		}
	}
}

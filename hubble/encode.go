package hubble

import (
	"math"
	"net/netip"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// message is a protocol buffer that grows. Fields of the value zero are left out, as proto3 has it.
type message []byte

func (m *message) text(field protowire.Number, s string) {
	if s != "" {
		*m = protowire.AppendString(protowire.AppendTag(*m, field, protowire.BytesType), s)
	}
}

func (m *message) texts(field protowire.Number, list []string) {
	for _, s := range list {
		*m = protowire.AppendString(protowire.AppendTag(*m, field, protowire.BytesType), s)
	}
}

func (m *message) number(field protowire.Number, n uint64) {
	if n != 0 {
		*m = protowire.AppendVarint(protowire.AppendTag(*m, field, protowire.VarintType), n)
	}
}

func (m *message) float(field protowire.Number, f float64) {
	if f != 0 {
		*m = protowire.AppendFixed64(protowire.AppendTag(*m, field, protowire.Fixed64Type), math.Float64bits(f))
	}
}

// inside adds a message, which is there even if nothing is in it.
func (m *message) inside(field protowire.Number, fill func(*message)) {
	var inner message
	fill(&inner)
	*m = protowire.AppendBytes(protowire.AppendTag(*m, field, protowire.BytesType), inner)
}

// wrapped adds a number of google.protobuf.UInt32Value or BoolValue, which is there even if it is 0.
func (m *message) wrapped(field protowire.Number, n uint64) {
	m.inside(field, func(m *message) { m.number(1, n) })
}

func (m *message) time(field protowire.Number, t time.Time) {
	m.inside(field, func(m *message) {
		m.number(1, uint64(t.Unix()))
		m.number(2, uint64(t.Nanosecond()))
	})
}

func (m *message) addr(field protowire.Number, a netip.Addr) {
	if a.IsValid() {
		m.text(field, a.String())
	}
}

// flow adds a flow.Flow.
func (m *message) flow(field protowire.Number, f *Flow) {
	m.inside(field, func(m *message) {
		m.time(1, f.Time)
		m.number(2, uint64(f.Verdict))
		m.number(3, uint64(f.Reason))
		m.inside(5, f.ip)
		m.inside(6, f.l4)
		m.inside(8, f.Source.endpoint)
		m.inside(9, f.Destination.endpoint)
		m.number(10, f.level())
		m.text(11, f.Node)
		m.texts(13, f.Source.Names)
		m.texts(14, f.Destination.Names)
		if f.DNS != nil || f.HTTP != nil {
			m.inside(15, f.l7)
		}
		m.inside(19, func(m *message) {
			m.number(1, uint64(f.Type))
			m.number(2, uint64(f.Point))
		})
		m.service(20, f.Source.Service)
		m.service(21, f.Destination.Service)
		m.number(22, uint64(f.Direction))
		m.number(24, f.observed())
		m.number(25, uint64(f.Reason))
		if f.Reply != ReplyUnknown {
			m.wrapped(26, uint64(f.Reply-Request))
		}
		m.text(100000, f.Summary)
		for _, p := range f.Policies {
			m.inside(f.decided(), func(m *message) {
				m.text(1, p.Name)
				m.text(2, p.Namespace)
				m.text(5, p.Kind)
			})
		}
	})
}

// level is the flow.FlowType.
func (f *Flow) level() uint64 {
	if f.DNS != nil || f.HTTP != nil {
		return 2
	}
	return 1
}

// observed is the flow.TraceObservationPoint: the point of a Trace, but for that of ToEndpoint, which is 0 there.
func (f *Flow) observed() uint64 {
	switch {
	case f.Type != Trace:
		return 0
	case f.Point == ToEndpoint:
		return 101
	}
	return uint64(f.Point)
}

// decided is the field for the policies that have decided.
func (f *Flow) decided() protowire.Number {
	const allowedEgress, allowedIngress, deniedEgress, deniedIngress = 21001, 21002, 21004, 21005
	switch denied := f.Verdict != Forwarded; {
	case f.Direction == Ingress && denied:
		return deniedIngress
	case f.Direction == Ingress:
		return allowedIngress
	case denied:
		return deniedEgress
	}
	return allowedEgress
}

func (f *Flow) ip(m *message) {
	m.addr(1, f.Source.Addr)
	m.addr(2, f.Destination.Addr)
	m.number(3, f.version())
	m.addr(5, f.Translated)
}

// version is the flow.IPVersion.
func (f *Flow) version() uint64 {
	switch {
	case f.Source.Addr.Is4():
		return 1
	case f.Source.Addr.Is6():
		return 2
	}
	return 0
}

func (f *Flow) l4(m *message) {
	ports := func(m *message) {
		m.number(1, uint64(f.Source.Port))
		m.number(2, uint64(f.Destination.Port))
	}
	switch f.Protocol {
	case TCP:
		m.inside(1, func(m *message) {
			ports(m)
			m.inside(3, func(m *message) {
				for n := protowire.Number(1); n <= 9; n++ {
					m.number(n, uint64(f.Flags>>n&1))
				}
			})
		})
	case UDP:
		m.inside(2, ports)
	case ICMPv4:
		m.inside(3, func(m *message) { m.number(1, 8) }) // echo request (RFC 792)
	case ICMPv6:
		m.inside(4, func(m *message) { m.number(1, 128) }) // echo request (RFC 4443 4.1)
	case SCTP:
		m.inside(5, ports)
	}
}

func (f *Flow) l7(m *message) {
	const response = 2
	m.number(1, response)
	m.number(2, uint64(f.Latency))
	if d := f.DNS; d != nil {
		m.inside(100, func(m *message) {
			m.text(1, d.Query)
			m.texts(2, d.IPs)
			m.text(5, "proxy")
			m.number(6, uint64(d.Code))
			m.texts(7, d.Types)
		})
	}
	if h := f.HTTP; h != nil {
		m.inside(101, func(m *message) {
			m.number(1, uint64(h.Code))
			m.text(2, h.Method)
			m.text(3, h.URL)
			m.text(4, h.Form)
		})
	}
}

func (e *End) endpoint(m *message) {
	m.number(2, uint64(e.identity()))
	m.text(3, e.Namespace)
	m.texts(4, e.Labels)
	m.text(5, e.Pod)
	if e.Workload.Name != "" {
		m.inside(6, func(m *message) {
			m.text(1, e.Workload.Name)
			m.text(2, e.Workload.Kind)
		})
	}
}

func (m *message) service(field protowire.Number, s Name) {
	if s.Name != "" {
		m.inside(field, func(m *message) {
			m.text(1, s.Name)
			m.text(2, s.Namespace)
		})
	}
}

package hubble

import (
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"tapestry.dev/tapestry/hubble/rpc"
)

// match reports whether a filter, or one field of it, is right for an event.
type match func(*Flow) bool

// given are the values of one field of a flow.FlowFilter, of which one has to be right.
type given struct {
	texts   []string // strings, and messages
	numbers []uint64
}

// filters has what can be filtered by, by the numbers of flow.FlowFilter's fields.
var filters = map[protowire.Number]struct {
	name  string
	build func(given) (match, error)
}{
	1:  {"source_ip", addrs(func(f *Flow) netip.Addr { return f.Source.Addr })},
	2:  {"source_pod", named(func(f *Flow) Name { return f.Source.pod() })},
	3:  {"destination_ip", addrs(func(f *Flow) netip.Addr { return f.Destination.Addr })},
	4:  {"destination_pod", named(func(f *Flow) Name { return f.Destination.pod() })},
	5:  {"verdict", number(func(f *Flow) uint64 { return uint64(f.Verdict) })},
	6:  {"event_type", eventTypes},
	7:  {"source_fqdn", names(func(f *Flow) []string { return f.Source.Names })},
	8:  {"destination_fqdn", names(func(f *Flow) []string { return f.Destination.Names })},
	9:  {"http_status_code", statusCodes},
	10: {"source_label", labels(func(f *Flow) []string { return f.Source.Labels })},
	11: {"destination_label", labels(func(f *Flow) []string { return f.Destination.Labels })},
	12: {"protocol", protocols},
	13: {"source_port", ports(func(f *Flow) uint16 { return f.Source.Port })},
	14: {"destination_port", ports(func(f *Flow) uint16 { return f.Destination.Port })},
	15: {"reply", replies},
	16: {"source_service", named(func(f *Flow) Name { return f.Source.Service })},
	17: {"destination_service", named(func(f *Flow) Name { return f.Destination.Service })},
	18: {"dns_query", expressions(func(f *Flow) (string, bool) {
		if f.DNS == nil {
			return "", false
		}
		return f.DNS.Query, true
	})},
	19: {"source_identity", number(func(f *Flow) uint64 { return uint64(f.Source.identity()) })},
	20: {"destination_identity", number(func(f *Flow) uint64 { return uint64(f.Destination.identity()) })},
	21: {"http_method", methods},
	22: {"http_path", expressions((*Flow).path)},
	23: {"tcp_flags", tcpFlags},
	24: {"node_name", names(func(f *Flow) []string { return []string{f.Node} })},
	25: {"ip_version", number((*Flow).version)},
	26: {"source_workload", workloads(func(f *Flow) Workload { return f.Source.Workload })},
	27: {"destination_workload", workloads(func(f *Flow) Workload { return f.Destination.Workload })},
	30: {"traffic_direction", number(func(f *Flow) uint64 { return uint64(f.Direction) })},
	31: {"http_url", expressions(func(f *Flow) (string, bool) {
		if f.HTTP == nil {
			return "", false
		}
		return f.HTTP.URL, true
	})},
	33: {"drop_reason_desc", number(func(f *Flow) uint64 { return uint64(f.Reason) })},
	34: {"source_ip_xlated", addrs(func(f *Flow) netip.Addr { return f.Translated })},
}

// compile reads a flow.FlowFilter, all of whose fields have to be right.
func compile(b []byte) (match, error) {
	all, err := fields(b)
	if err != nil {
		return nil, err
	}
	values := map[protowire.Number]given{}
	var order []protowire.Number
	for i := range all {
		f := &all[i]
		v, seen := values[f.n]
		if !seen {
			order = append(order, f.n)
		}
		v.texts = append(v.texts, string(f.bytes))
		if numbers, err := f.numbers(); err == nil { // of a text it means nothing
			v.numbers = append(v.numbers, numbers...)
		}
		values[f.n] = v
	}
	var parts []match
	for _, n := range order {
		filter, ok := filters[n]
		if !ok {
			return nil, rpc.Errorf(rpc.Unimplemented, "flows cannot be filtered by field %d of flow.FlowFilter here", n)
		}
		m, err := filter.build(values[n])
		if err != nil {
			return nil, rpc.Errorf(rpc.InvalidArgument, "filter %s: %v", filter.name, err)
		}
		parts = append(parts, m)
	}
	return func(f *Flow) bool {
		for _, m := range parts {
			if !m(f) {
				return false
			}
		}
		return true
	}, nil
}

// anyOf returns a match that is right if one of several is.
func anyOf[T any](list []T, parse func(T) (match, error)) (match, error) {
	var parts []match
	for _, v := range list {
		m, err := parse(v)
		if err != nil {
			return nil, err
		}
		parts = append(parts, m)
	}
	return func(f *Flow) bool {
		return slices.ContainsFunc(parts, func(m match) bool { return m(f) })
	}, nil
}

// each makes what builds a match out of texts.
func each(parse func(text string) (match, error)) func(given) (match, error) {
	return func(g given) (match, error) { return anyOf(g.texts, parse) }
}

func number(of func(*Flow) uint64) func(given) (match, error) {
	return func(g given) (match, error) {
		return func(f *Flow) bool { return slices.Contains(g.numbers, of(f)) }, nil
	}
}

// addrs are addresses and CIDRs.
func addrs(of func(*Flow) netip.Addr) func(given) (match, error) {
	return each(func(text string) (match, error) {
		p, err := netip.ParsePrefix(text)
		if !strings.Contains(text, "/") {
			var a netip.Addr
			a, err = netip.ParseAddr(text)
			p = netip.PrefixFrom(a, a.BitLen())
		}
		if err != nil {
			return nil, err
		}
		return func(f *Flow) bool { return p.Contains(of(f)) }, nil
	})
}

func (e *End) pod() Name { return Name{e.Namespace, e.Pod} }

// named are "namespace/" or "namespace/name", where a name stands for all that begin so, and without a namespace means
// that of the name default.
func named(of func(*Flow) Name) func(given) (match, error) {
	return each(func(text string) (match, error) {
		namespace, name, ok := strings.Cut(text, "/")
		if !ok && text != "" {
			namespace, name = "default", text
		}
		return func(f *Flow) bool {
			is := of(f)
			return is.Name != "" && strings.HasPrefix(is.Name, name) && (namespace == "" || namespace == is.Namespace)
		}, nil
	})
}

// names are DNS names, in which an asterisk stands for any text. Before a slash may be the name of a cluster, which is
// not looked at: this is the only one.
func names(of func(*Flow) []string) func(given) (match, error) {
	return each(func(text string) (match, error) {
		if _, node, ok := strings.Cut(text, "/"); ok {
			text = node
		}
		text = strings.ToLower(strings.TrimSuffix(strings.TrimSpace(text), "."))
		if text == "" {
			return nil, fmt.Errorf("a name is empty")
		}
		e, err := regexp.Compile(`\A` + strings.ReplaceAll(regexp.QuoteMeta(text), `\*`, `.*`) + `\z`)
		if err != nil {
			return nil, err
		}
		return func(f *Flow) bool { return slices.ContainsFunc(of(f), e.MatchString) }, nil
	})
}

// expressions are regular expressions. of returns false for an event that has nothing to compare.
func expressions(of func(*Flow) (string, bool)) func(given) (match, error) {
	return each(func(text string) (match, error) {
		e, err := regexp.Compile(text)
		if err != nil {
			return nil, err
		}
		return func(f *Flow) bool {
			s, ok := of(f)
			return ok && e.MatchString(s)
		}, nil
	})
}

func (f *Flow) path() (string, bool) {
	if f.HTTP == nil {
		return "", false
	}
	u, err := url.ParseRequestURI(f.HTTP.URL)
	if err != nil {
		return "", false
	}
	return u.Path, true
}

func ports(of func(*Flow) uint16) func(given) (match, error) {
	return each(func(text string) (match, error) {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return nil, err
		}
		return func(f *Flow) bool {
			return of(f) == uint16(n) && (f.Protocol == TCP || f.Protocol == UDP || f.Protocol == SCTP)
		}, nil
	})
}

func protocols(g given) (match, error) {
	l4 := map[string][]Protocol{"tcp": {TCP}, "udp": {UDP}, "sctp": {SCTP}, "icmp": {ICMPv4, ICMPv6}, "icmpv4": {ICMPv4}, "icmpv6": {ICMPv6}}
	return anyOf(g.texts, func(text string) (match, error) {
		switch name := strings.ToLower(text); name {
		case "dns":
			return func(f *Flow) bool { return f.DNS != nil }, nil
		case "http":
			return func(f *Flow) bool { return f.HTTP != nil }, nil
		default:
			if l4[name] == nil {
				return nil, fmt.Errorf("unknown protocol %q", text)
			}
			return func(f *Flow) bool { return slices.Contains(l4[name], f.Protocol) }, nil
		}
	})
}

func methods(g given) (match, error) {
	return func(f *Flow) bool {
		return f.HTTP != nil && slices.ContainsFunc(g.texts, func(m string) bool { return strings.EqualFold(m, f.HTTP.Method) })
	}, nil
}

var statusCode = regexp.MustCompile(`^([1-5][0-9]{2}|[1-5][0-9]?\+)$`)

// statusCodes are "404", "40+" and "4+".
func statusCodes(g given) (match, error) {
	return anyOf(g.texts, func(text string) (match, error) {
		if !statusCode.MatchString(text) {
			return nil, fmt.Errorf("%q is no status code, and no beginning of one with a plus sign", text)
		}
		return func(f *Flow) bool {
			return f.HTTP != nil && f.HTTP.Code != 0 && strings.HasPrefix(strconv.Itoa(int(f.HTTP.Code)), strings.TrimSuffix(text, "+"))
		}, nil
	})
}

// replies are values of is_reply. What was dropped has none, and counts as no reply (Hubble's UI relies on that).
func replies(g given) (match, error) {
	return func(f *Flow) bool {
		if f.Reply == ReplyUnknown && f.Verdict != Dropped {
			return false
		}
		is := uint64(0)
		if f.Reply == Answer {
			is = 1
		}
		return slices.Contains(g.numbers, is)
	}, nil
}

// eventTypes are flow.EventTypeFilter: a type, 0 for any, and with match_sub_type a point.
func eventTypes(g given) (match, error) {
	return anyOf(g.texts, func(text string) (match, error) {
		n, err := numbersOf(text)
		if err != nil {
			return nil, err
		}
		return func(f *Flow) bool {
			return (n[1] == 0 || EventType(n[1]) == f.Type) && (n[2] == 0 || int32(n[3]) == f.Point)
		}, nil
	})
}

// tcpFlags are flow.TCPFlags, all of which have to be set.
func tcpFlags(g given) (match, error) {
	return anyOf(g.texts, func(text string) (match, error) {
		n, err := numbersOf(text)
		if err != nil {
			return nil, err
		}
		var want TCPFlags
		for field, v := range n {
			if v != 0 && field < 16 {
				want |= 1 << field
			}
		}
		return func(f *Flow) bool { return f.Protocol == TCP && f.Flags&want == want }, nil
	})
}

// workloads are flow.Workload, of which either field may be empty.
func workloads(of func(*Flow) Workload) func(given) (match, error) {
	return each(func(text string) (match, error) {
		all, err := fields([]byte(text))
		if err != nil {
			return nil, err
		}
		var want Workload
		for _, f := range all {
			switch f.n {
			case 1:
				want.Name = string(f.bytes)
			case 2:
				want.Kind = string(f.bytes)
			}
		}
		return func(f *Flow) bool {
			is := of(f)
			return is.Name != "" && (want.Name == "" || want.Name == is.Name) && (want.Kind == "" || want.Kind == is.Kind)
		}, nil
	})
}

// numbersOf returns the numbers in a message by their fields.
func numbersOf(text string) (map[protowire.Number]uint64, error) {
	all, err := fields([]byte(text))
	n := map[protowire.Number]uint64{}
	for _, f := range all {
		n[f.n] = f.value
	}
	return n, err
}

package hubble

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"tapestry.dev/tapestry/hubble/rpc"
)

// field is one field of a message that was received: its bytes, or its number.
type field struct {
	n     protowire.Number
	bytes []byte
	value uint64
	kind  protowire.Type
}

// fields reads a message. The bytes are parts of b.
func fields(b []byte) ([]field, error) {
	var all []field
	for len(b) > 0 {
		n, kind, used := protowire.ConsumeTag(b)
		if used < 0 {
			return nil, rpc.Errorf(rpc.InvalidArgument, "the request is no protocol buffer: %v", protowire.ParseError(used))
		}
		b = b[used:]
		f := field{n: n, kind: kind}
		switch kind {
		case protowire.VarintType:
			f.value, used = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			f.bytes, used = protowire.ConsumeBytes(b)
		default:
			used = protowire.ConsumeFieldValue(n, kind, b)
		}
		if used < 0 {
			return nil, rpc.Errorf(rpc.InvalidArgument, "field %d of the request: %v", n, protowire.ParseError(used))
		}
		b = b[used:]
		all = append(all, f)
	}
	return all, nil
}

// numbers returns the numbers of a field, which may be packed.
func (f *field) numbers() ([]uint64, error) {
	if f.kind != protowire.BytesType {
		return []uint64{f.value}, nil
	}
	var list []uint64
	for b := f.bytes; len(b) > 0; {
		v, used := protowire.ConsumeVarint(b)
		if used < 0 {
			return nil, fmt.Errorf("field %d: %w", f.n, protowire.ParseError(used))
		}
		list, b = append(list, v), b[used:]
	}
	return list, nil
}

// query is an observer.GetFlowsRequest.
type query struct {
	number       uint64
	first        bool
	follow       bool
	since, until time.Time // zero for no limit
	allow, deny  []match
}

// parse reads a GetFlowsRequest. Of its other fields, field masks alone are used by hubble's commands, which say what
// need not be sent.
func parse(b []byte) (*query, error) {
	all, err := fields(b)
	if err != nil {
		return nil, err
	}
	var q query
	for i := range all {
		f := &all[i]
		switch f.n {
		case 1:
			q.number = f.value
		case 3:
			q.follow = f.value != 0
		case 9:
			q.first = f.value != 0
		case 5, 6:
			m, err := compile(f.bytes)
			if err != nil {
				return nil, err
			}
			if f.n == 5 {
				q.deny = append(q.deny, m)
			} else {
				q.allow = append(q.allow, m)
			}
		case 7:
			q.since, err = timestamp(f.bytes)
		case 8:
			q.until, err = timestamp(f.bytes)
		}
		if err != nil {
			return nil, err
		}
	}
	if q.first && q.follow {
		return nil, rpc.Errorf(rpc.InvalidArgument, "first and follow exclude one another")
	}
	return &q, nil
}

// timestamp reads a google.protobuf.Timestamp.
func timestamp(b []byte) (time.Time, error) {
	all, err := fields(b)
	if err != nil {
		return time.Time{}, err
	}
	var seconds, nanos int64
	for _, f := range all {
		switch f.n {
		case 1:
			seconds = int64(f.value)
		case 2:
			nanos = int64(f.value)
		}
	}
	return time.Unix(seconds, nanos), nil
}

// admits reports whether the filters admit an event: one of those that allow, if there are any, and none that denies.
func (q *query) admits(f *Flow) bool {
	for _, m := range q.deny {
		if m(f) {
			return false
		}
	}
	for _, m := range q.allow {
		if m(f) {
			return true
		}
	}
	return len(q.allow) == 0
}

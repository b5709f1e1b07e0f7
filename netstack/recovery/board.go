package recovery

// maxSpans bounds what a Board remembers. What does not fit is sent again, which costs only time.
const maxSpans = 32

// span is the sequence numbers from at to before end.
type span struct{ at, end uint32 }

// Board holds which bytes beyond the acknowledged ones have arrived, as selective acknowledgements say (SACK). Numbers
// are compared modulo 1<<32 (RFC 9293 3.4). The zero value holds nothing.
type Board struct {
	spans [maxSpans]span // in order, apart from each other
	n     int
}

func after(a, b uint32) bool { return int32(a-b) > 0 }

// Add records that the bytes from at to before end have arrived. The caller has checked that they were sent and were
// not acknowledged before.
func (b *Board) Add(at, end uint32) {
	if !after(end, at) {
		return
	}
	i := 0
	for i < b.n && after(at, b.spans[i].end) {
		i++
	}
	j := i
	for j < b.n && !after(b.spans[j].at, end) {
		if after(at, b.spans[j].at) {
			at = b.spans[j].at
		}
		if after(b.spans[j].end, end) {
			end = b.spans[j].end
		}
		j++
	}
	if i == j && b.n == maxSpans {
		return
	}
	rest := copy(b.spans[i+1:], b.spans[j:b.n])
	if i == j {
		rest = b.n - i
	}
	b.spans[i] = span{at, end}
	b.n = i + 1 + rest
}

// Ack forgets what lies before una, up to which everything is acknowledged.
func (b *Board) Ack(una uint32) {
	i := 0
	for i < b.n && !after(b.spans[i].end, una) {
		i++
	}
	b.n = copy(b.spans[:], b.spans[i:b.n])
	if b.n > 0 && after(una, b.spans[0].at) {
		b.spans[0].at = una
	}
}

// Clear forgets everything: a receiver may drop what it has not acknowledged (RFC 2018 8).
func (b *Board) Clear() { b.n = 0 }

// Arrived returns how many bytes have arrived beyond the acknowledged ones.
func (b *Board) Arrived() (n uint32) {
	for _, s := range b.spans[:b.n] {
		n += s.end - s.at
	}
	return n
}

// Lost returns the number before which everything that has not arrived is lost: three segments of mss bytes, or three
// pieces, have arrived behind it (IsLost of RFC 6675 4). ok is false when nothing is.
func (b *Board) Lost(mss int) (before uint32, ok bool) {
	bytes := uint32(0)
	for i := b.n - 1; i >= 0; i-- {
		bytes += b.spans[i].end - b.spans[i].at
		if bytes >= 3*uint32(mss) || b.n-i >= 3 {
			return b.spans[i].at, true
		}
	}
	return 0, false
}

// Hole returns the first bytes from at to before end that have not arrived, n of them, or 0.
func (b *Board) Hole(at, end uint32) (from, n uint32) {
	for _, s := range b.spans[:b.n] {
		if !after(end, at) {
			return at, 0
		}
		if after(s.at, at) {
			return at, min(s.at-at, end-at)
		}
		if after(s.end, at) {
			at = s.end
		}
	}
	if !after(end, at) {
		return at, 0
	}
	return at, end - at
}

// Missing returns how many bytes from at to before end have not arrived.
func (b *Board) Missing(at, end uint32) (sum uint32) {
	for {
		from, n := b.Hole(at, end)
		if n == 0 {
			return sum
		}
		sum += n
		at = from + n
	}
}

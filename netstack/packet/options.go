package packet

// IPv4 options by their type octet (RFC 791 3.1).
const (
	optEnd           = 0
	optNop           = 1
	optRecordRoute   = 7
	optTimestamp     = 68
	optLooseRoute    = 131
	optStrictRoute   = 137
	leastRecordRoute = 3 // type, length, pointer
	leastTimestamp   = 4 // the same, and overflow with flags
)

// goodOptions reports whether the options of an IPv4 header are well formed and none of them routes the packet. With a
// source route the final destination is not the one in Tuple, and routers drop such packets by default (RFC 7126 4.3,
// 4.4).
func goodOptions(opts []byte) bool {
	for len(opts) > 0 {
		switch opts[0] {
		case optEnd:
			return true
		case optNop:
			opts = opts[1:]
			continue
		}
		if len(opts) < 2 {
			return false
		}
		n := int(opts[1])
		if n < 2 || n > len(opts) {
			return false
		}
		switch opts[0] {
		case optLooseRoute, optStrictRoute:
			return false
		case optRecordRoute: // the pointer must point past these three octets
			if n < leastRecordRoute || opts[2] < leastRecordRoute+1 {
				return false
			}
		case optTimestamp:
			if n < leastTimestamp || opts[2] < leastTimestamp+1 {
				return false
			}
		}
		opts = opts[n:]
	}
	return true
}

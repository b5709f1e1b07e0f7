package underlay

import (
	"net"
	"strconv"
)

// zoneIndex gives the interface number of an IPv6 zone, 0 when there is none.
func zoneIndex(zone string) uint32 {
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n)
	}
	if ifi, err := net.InterfaceByName(zone); err == nil {
		return uint32(ifi.Index)
	}
	return 0
}

// zoneName is the numeric form: it needs no system call and allocates little, and link-local peers are rare.
func zoneName(index uint32) string { return strconv.FormatUint(uint64(index), 10) }

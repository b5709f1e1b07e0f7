package underlay

import (
	"net"
	"strconv"
)

// zoneIndex returns the interface number of an IPv6 zone, 0 when there is no such interface.
func zoneIndex(zone string) uint32 {
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n)
	}
	if ifi, err := net.InterfaceByName(zone); err == nil {
		return uint32(ifi.Index)
	}
	return 0
}

// zoneName returns the zone of an interface number in its numeric form, which needs no system call.
func zoneName(index uint32) string { return strconv.FormatUint(uint64(index), 10) }

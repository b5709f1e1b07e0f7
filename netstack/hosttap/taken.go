package hosttap

import (
	"fmt"
	"net/netip"

	"tapestry.dev/tapestry/netstack/tap"
)

// noneTaken returns an error if a range of load balancers has an address or is a route of another interface. The route
// through the device would take the place of the host's own, and cut it off.
func noneTaken(ns *tap.Namespace, ranges []netip.Prefix) error {
	for _, r := range ranges {
		name, what, err := tap.Uses(ns, r, Name)
		switch {
		case err != nil:
			return err
		case name != "":
			return fmt.Errorf("the range %s of load balancers is the host's own: interface %s has %s; give a range in which the host has no address", r, name, what)
		}
	}
	return nil
}

package agent

import (
	"fmt"

	"tapestry.dev/tapestry/netstack"
)

// metadataServers is the value of --deny-egress that means netstack.MetadataServers.
const metadataServers = "metadata"

// destinations parses the values of --deny-egress.
func destinations(texts []string) (list []netstack.Destination, err error) {
	for _, text := range texts {
		switch text {
		case "":
		case metadataServers:
			list = append(list, netstack.MetadataServers...)
		default:
			d, err := netstack.ParseDestination(text)
			if err != nil {
				return nil, fmt.Errorf("--deny-egress: %w", err)
			}
			list = append(list, d)
		}
	}
	return list, nil
}

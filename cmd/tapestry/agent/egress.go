package agent

import (
	"fmt"

	"tapestry.dev/tapestry/netstack"
)

// metadataServers stands for netstack.MetadataServers.
const metadataServers = "metadata"

// destinations reads what --deny-egress says.
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

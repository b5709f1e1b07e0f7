package tell

import (
	"context"
	"os"

	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/share/descriptors"
)

// descriptorsInUse returns the limit of this process and how many descriptors it has now.
func descriptorsInUse(p descriptors.Plan) localapi.Descriptors {
	d := localapi.Descriptors{Limit: p.Limit(), Useful: descriptors.Useful}
	if list, err := os.ReadDir("/proc/self/fd"); err == nil {
		d.InUse = len(list) - 1 // one was for reading the list
	}
	return d
}

// descriptorRows returns the plan of this process.
func (t *Teller) descriptorRows(context.Context) (rows []localapi.DescriptorShare, _ error) {
	for _, part := range t.o.Descriptors.Parts() {
		rows = append(rows, localapi.DescriptorShare{For: part.For, Most: part.Most})
	}
	return rows, nil
}

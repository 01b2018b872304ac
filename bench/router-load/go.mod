module pagoda.dev/router-load

go 1.25
